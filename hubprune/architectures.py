"""Table of supported families: tensor names, norms, and the values of the modeling template.

A new family is one entry in `ARCHITECTURES`; nothing else in the package names a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubprune.artifacts import Layout
from hubprune.errors import UnsupportedArchitectureError

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What hubprune has to know about one family of decoder-only models."""

    model_type: str
    """`model_type` in the base's config.json; also the name of the module in transformers."""
    class_prefix: str
    """Prefix of the classes in transformers: `Llama` for LlamaConfig, LlamaModel and LlamaForCausalLM."""
    attn_module: str = "self_attn"
    """Name of the attention module inside a decoder layer."""
    mlp_module: str = "mlp"
    """Name of the MLP module inside a decoder layer."""
    attn_norms: tuple[str, ...] = ("input_layernorm",)
    """Norms that belong to the attention sublayer and go with it; the first one sees the sublayer's input."""
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    """Norms that belong to the MLP sublayer and go with it; the first one sees the sublayer's input."""
    attn_output: str = "self_attn.o_proj.weight"
    """Projection that writes the attention's result into the residual stream; zero here bypasses the sublayer."""
    mlp_output: str = "mlp.down_proj.weight"
    """Projection that writes the MLP's result into the residual stream."""
    layers_prefix: str = "model.layers."
    """Prefix of the tensor names of decoder layers."""
    embedding: str = "model.embed_tokens.weight"
    """Name of the input embedding tensor."""
    head: str = "lm_head.weight"
    """Name of the output head tensor; absent where it is tied to the embedding."""
    computed: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    """Tensors inside a decoder layer that old checkpoints store and transformers computes: no parameters."""
    per_layer_config_lists: tuple[str, ...] = ("layer_types",)
    """Keys of config.json that hold one value per layer and are cut when whole layers go."""
    nemotron_nas: bool = False
    """Whether the layers are Llama's, so that the nemotron-nas layout can describe a pruned one."""

    @property
    def pruned_model_type(self) -> str:
        """`model_type` of a published repo that needs the modeling file."""
        return f"pruned_{self.model_type}"

    @property
    def pruned_class(self) -> str:
        """Name of the class that the modeling file defines."""
        return f"Pruned{self.class_prefix}ForCausalLM"

    def modeling_file(self, layout: Layout) -> str:
        """File name of the published modeling file of a layout that needs one."""
        return f"modeling_pruned_{self.model_type}{'_nas' if layout == 'nemotron-nas' else ''}.py"

    def is_parameter(self, tensor: str) -> bool:
        """Tell whether a tensor of a checkpoint is a parameter of the model."""
        return not (tensor.startswith(self.layers_prefix) and tensor.endswith(self.computed))

    def attn_parts(self) -> tuple[str, ...]:
        """Names, inside a decoder layer, of everything that goes with its attention."""
        return (self.attn_module, *self.attn_norms)

    def mlp_parts(self) -> tuple[str, ...]:
        """Names, inside a decoder layer, of everything that goes with its MLP."""
        return (self.mlp_module, *self.mlp_norms)


ARCHITECTURES: Mapping[str, Architecture] = {
    entry.model_type: entry
    for entry in (
        Architecture(model_type="llama", class_prefix="Llama", nemotron_nas=True),
        Architecture(model_type="mistral", class_prefix="Mistral"),
    )
}


def architecture_of(config: Mapping[str, Any], *, name: str = "the base") -> Architecture:
    """Return the family of a base from its config.json.

    Args:
        config: the parsed config.json.
        name: how error messages call the base.

    Raises:
        UnsupportedArchitectureError: the `model_type` has no entry; the message lists those that have.
    """
    model_type = config.get("model_type")
    found = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if found is None:
        raise UnsupportedArchitectureError(
            f"{name} has model_type {model_type!r}, which hubprune does not support.",
            hint=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return found
