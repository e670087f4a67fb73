"""hubprune: prune a language model from the Hugging Face Hub, measure what it cost, publish the result.

    import hubprune

    hubprune.score("meta-llama/Llama-3.2-3B")
    hubprune.prune("meta-llama/Llama-3.2-3B", attn_drop=3, out="pruned")
    model, tokenizer = hubprune.load("pruned")

Each name takes the options of its command and loads what it needs when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hubprune.core import __version__

if TYPE_CHECKING:
    from hubprune.api import (
        adopt,
        compare,
        doctor,
        export_gguf,
        heal,
        load,
        prune,
        publish,
        push,
        quantize,
        reproduce,
        score,
        speed,
        sweep,
        verify,
    )

__all__ = [
    "__version__", "adopt", "compare", "doctor", "export_gguf", "heal", "load", "prune", "publish", "push", "quantize",
    "reproduce", "score", "speed", "sweep", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Find what is called in the module that has it, which costs nobody anything who calls nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hubprune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
