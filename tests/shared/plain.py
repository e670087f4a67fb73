"""The command line as it is where nothing was installed that loads models."""

from __future__ import annotations

WITHOUT_TORCH = """
import sys
class Missing:
    names = {"torch", "transformers", "datasets", "lm_eval", "scipy", "safetensors", "accelerate", "numpy", "pandas",
             "pyarrow", "tokenizers", "peft", "sklearn", "matplotlib", "starlette", "uvicorn", "nh3", "lz4"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from hubprune.cli import main; main()
"""
