"""The one door through which models are loaded: what the files of a base only wish for stays outside.

A config.json may name the code that computes attention, a repo with a kernel among it, or ask for other outputs; a
generation_config.json says how its owner likes texts to be made.  Readers may want that.  Where this package computes,
base and pruned model run the same attention and generate the same way, whoever wrote their files.  What such a model
hands to its layers is found out by standing where they are.
"""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path
from typing import Any

ATTENTION = None
"""No wish: transformers then takes what it holds to be right for a family, `sdpa` for most and `eager` for Gemma 2."""
PLAIN_OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}


def neutral_config(source: str | Path, *, own_code: bool, **options: Any) -> Any:
    """Read the config of a folder or repo, without what is only its wish.

    Args:
        source: folder or repo id.
        own_code: whether code in it may be run, which this package wrote.
        options: of `AutoConfig.from_pretrained`, such as `revision`.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=own_code, **PLAIN_OUTPUTS, **options)
    # After it was made: of several spellings in a config.json, one wins over what is passed.
    config._attn_implementation = ATTENTION
    return config


def load_causal_lm(source: str | Path, *, dtype: Any, own_code: bool, **options: Any) -> Any:
    """Load a causal language model from safetensors, in evaluation mode.

    Args:
        source: folder or repo id.
        dtype: `auto` for its own, or a torch dtype.
        own_code: as of `neutral_config`.
        options: others of `from_pretrained`.
    """
    return load_with_report(source, dtype=dtype, own_code=own_code, **options)[0]


def load_with_report(source: str | Path, *, dtype: Any, own_code: bool, **options: Any) -> tuple[Any, Any]:
    """Load as `load_causal_lm` does, and return what transformers says of the keys, too."""
    from transformers import AutoModelForCausalLM

    _settle()
    of_repo = {key: value for key, value in options.items() if key == "revision"}
    model, report = AutoModelForCausalLM.from_pretrained(
        source, config=neutral_config(source, own_code=own_code, **of_repo), attn_implementation=ATTENTION,
        dtype=dtype, trust_remote_code=own_code, use_safetensors=True, output_loading_info=True, **options,
    )  # fmt: skip
    # `generate` fills whatever it is not told from this one, penalties and beams included.
    model.generation_config = fresh_generation(model.generation_config.eos_token_id)
    return model.eval(), report


@cache
def _settle() -> None:
    """Leave what was imported up to now out of every search for garbage, which would take 0.3 s each time."""
    gc.freeze()


def fresh_generation(end_tokens: Any, **settings: Any) -> Any:
    """Make settings of greedy generation that owe nothing to a generation_config.json but the tokens that end a text.

    Args:
        end_tokens: an id, a list of them or None, as a file of a stranger has them; what is none of these is no end.
        settings: of `GenerationConfig`.
    """
    from transformers import GenerationConfig

    listed = end_tokens if isinstance(end_tokens, list) else [end_tokens]
    ends = [token for token in listed if type(token) is int and token >= 0]
    return GenerationConfig(do_sample=False, num_beams=1, eos_token_id=ends or None, **settings)


def recorder_of(layer: Any) -> Any:
    """Make a module that stands where a decoder layer was and notes what the model hands it.

    Returns:
        One whose `states` are the hidden states of the last pass and whose `calls` is all that came beside them; after
        `forget()` it holds neither.
    """
    import torch

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Some models look at plain attributes of a layer, such as `attention_type`, to choose what they hand it.
            self.__dict__.update({name: value for name, value in vars(layer).items() if not name.startswith("_")})
            self.forget()

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            self.states, self.calls = hidden_states, kwargs
            return hidden_states

        def forget(self) -> None:
            self.states, self.calls = torch.empty(0), dict[str, Any]()

    return Recorder()
