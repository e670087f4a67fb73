# Written by hubprune 0.1.0; template sha256 25ee984315bc80cd6b06cdee718b58a17342d8d7468ceb6f52cc41d1f887679b.
# This file is the same in every Mistral repo of that version and layout: layer numbers live in config.json.
"""Mistral with attention and MLP sublayers physically removed; loaded with `trust_remote_code=True`.

Keys of config.json that are read here, in the layer numbers of this checkpoint:
    dropped_attn_layers     layers without attention
    dropped_mlp_layers      layers without MLP
    mlp_intermediate_sizes  one MLP width per layer, 0 where the MLP was dropped; it stands for `intermediate_size`

Every layer runs the code of transformers, unchanged.  In place of a removed sublayer stands a module without parameters
that adds exactly zero to the residual stream and leaves the KV cache alone.
"""

import copy
import functools

import transformers
from torch import nn

FLOOR = (4, 48)
ATTN = "self_attn"
MLP = "mlp"
ATTN_NORMS = ("input_layernorm",)
MLP_NORMS = ("post_attention_layernorm",)
READS_POSITIONS = ("llama3", "yarn", "longrope")  # kinds of rope scaling

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
if VERSION < FLOOR:
    raise ImportError(
        "This checkpoint needs transformers>=" + ".".join(map(str, FLOOR)) + f", found {transformers.__version__}."
    )

# Behind the check, since an older transformers may not have the family.
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralForCausalLM, MistralModel


def with_rope_keys(keys):
    """Spell the rotary embedding as this transformers does: before 5 it has no `rope_parameters`.

    In config.json `rope_theta` is inside `rope_scaling` of some kinds: side by side they keep AutoTokenizer of
    transformers 5 from loading where it may not run this file.
    """
    rope = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
    if VERSION >= (5, 0) or "rope_theta" not in rope:
        return keys
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    plain = scaling.get("rope_type", scaling.get("type", "default")) == "default"
    return {**keys, "rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling}


def without_rope_pair(values):
    """Move `rope_theta` into `rope_scaling` before config.json is written, where the two are no pair."""
    scaling = values.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) in READS_POSITIONS and "rope_theta" in values:
        needed = {key: values[key] for key in ("original_max_position_embeddings",) if key in values}
        values["rope_scaling"] = {**needed, **values["rope_scaling"], "rope_theta": values.pop("rope_theta")}
    return values


class PrunedMistralConfig(MistralConfig):
    model_type = "pruned_mistral"

    def __init__(self, mlp_intermediate_sizes=None, **kwargs):
        widths = mlp_intermediate_sizes
        if isinstance(widths, (list, tuple)) and widths and all(type(width) is int for width in widths):
            kwargs["intermediate_size"] = max(widths)
        elif kwargs.get("intermediate_size", 0) is None:
            raise ValueError(f"config.json: mlp_intermediate_sizes={widths!r} is no list of MLP widths.")
        super().__init__(**with_rope_keys(kwargs))
        self.mlp_intermediate_sizes = mlp_intermediate_sizes

    def to_dict(self):
        # With one width for all layers, a stock class that is called by its name would load this checkpoint and fill
        # its holes with random numbers; without, it fails.
        hidden = {} if self.mlp_intermediate_sizes is None else {"intermediate_size": None}
        return without_rope_pair({**super().to_dict(), **hidden})


class NoAttn(nn.Module):
    """Stands in for a removed attention.

    Its name must not contain "Attention": transformers searches this file for such classes and expects its attention
    interface in them.
    """

    def __init__(self, attn):
        super().__init__()
        # Some layers look at plain attributes of their attention, such as `is_sliding`.
        self.__dict__.update({name: value for name, value in vars(attn).items() if not name.startswith("_")})

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states.new_zeros(()), None


class NoMLP(nn.Module):
    """Stands in for a removed MLP."""

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states.new_zeros(())


def layer_numbers(config, key):
    """Return the layers that a key of config.json lists, as a set."""
    layers = getattr(config, key, None)
    if layers is None and config.mlp_intermediate_sizes is None:  # a config that somebody made without drops
        return set()
    listed = isinstance(layers, (list, tuple))
    if not listed or not all(type(layer) is int and 0 <= layer < config.num_hidden_layers for layer in layers):
        raise ValueError(f"config.json: {key}={layers!r} does not fit num_hidden_layers={config.num_hidden_layers}.")
    return set(layers)


def mlp_widths(config, no_mlp):
    """Return the MLP width of every layer, 0 where there is none."""
    widths = getattr(config, "mlp_intermediate_sizes", None)
    if widths is None:
        return [0 if layer in no_mlp else config.intermediate_size for layer in range(config.num_hidden_layers)]
    listed = isinstance(widths, (list, tuple)) and len(widths) == config.num_hidden_layers
    fits = listed and all(type(width) is int and width >= 0 for width in widths)
    if not fits or {layer for layer, width in enumerate(widths) if not width} != no_mlp:
        raise ValueError(f"config.json: mlp_intermediate_sizes={widths!r} does not fit the layers and their drops.")
    return widths


def cache_slots(layers, no_attn):
    """Return the cache slot of every attention that is left, by layer.

    A cache keeps one slot per layer and asks the first slot of a kind, full or sliding, how long the sequence is.  So
    the attentions that are left of a kind take the first slots of that kind, in order.
    """
    kinds = [getattr(getattr(layer, ATTN), "sliding_window", None) is None for layer in layers]
    free = {kind: iter([slot for slot, other in enumerate(kinds) if other == kind]) for kind in set(kinds)}
    slots = {layer: next(free[kind]) for layer, kind in enumerate(kinds) if layer not in no_attn}
    if {kinds[layer] for layer in slots} != set(kinds):
        raise ValueError("config.json: dropped_attn_layers leaves no attention of some kind (full or sliding).")
    return slots


def trim_cache(module, args, kwargs, used):
    """Take away the trailing cache slots that no attention will ever fill: some caches cannot crop or free them.

    One in the middle has to stay, since the slots of the other kind are counted from the first; it is never cropped.
    """
    cache = kwargs.get("past_key_values")
    for name in ("layers", "key_cache", "value_cache"):
        slots = getattr(cache, name, None)
        if isinstance(slots, list):
            del slots[max(used) + 1 :]
    for number, slot in enumerate(getattr(cache, "layers", ())):
        if number not in used:
            slot.crop = leave_alone


def leave_alone(*args, **kwargs):
    """Do nothing; stands in for cropping a cache slot that is empty for good."""


def drop_sublayer(layer, name, stand_in, norms):
    """Put a stand-in where a sublayer was, and nothing where its norms were."""
    setattr(layer, name, stand_in)
    for norm in norms:
        setattr(layer, norm, nn.Identity())


def prune(model, config):
    """Turn a freshly built stock model into the pruned one that config.json describes."""
    no_attn, no_mlp = layer_numbers(config, "dropped_attn_layers"), layer_numbers(config, "dropped_mlp_layers")
    widths, slots = mlp_widths(config, no_mlp), cache_slots(model.layers, no_attn)
    for number, layer in enumerate(model.layers):
        if number in no_attn:
            drop_sublayer(layer, ATTN, NoAttn(getattr(layer, ATTN)), ATTN_NORMS)
        else:
            getattr(layer, ATTN).layer_idx = slots[number]
        if number in no_mlp:
            drop_sublayer(layer, MLP, NoMLP(), MLP_NORMS)
        elif widths[number] != config.intermediate_size:
            narrow = copy.deepcopy(config)
            narrow.intermediate_size = widths[number]
            setattr(layer, MLP, type(getattr(layer, MLP))(narrow))
    trim = functools.partial(trim_cache, used=frozenset(slots.values()))
    model.register_forward_pre_hook(trim, with_kwargs=True)


class PrunedMistralModel(MistralModel):
    config_class = PrunedMistralConfig

    def __init__(self, config):
        super().__init__(config)
        prune(self, config)
        self.post_init()


class PrunedMistralForCausalLM(MistralForCausalLM):
    config_class = PrunedMistralConfig

    def __init__(self, config):
        super().__init__(config)
        prune(self.model, config)
        self.post_init()
