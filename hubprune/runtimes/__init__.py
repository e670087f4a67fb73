"""Other runtimes: a checkpoint is really run in vLLM, llama.cpp or mlx-lm, and held against itself in transformers.

In comes a folder, or for llama.cpp a GGUF file, and token ids; out comes how close each runtime is, or in its own words
why it does not take the checkpoint.  A runtime has an interpreter of its own, found here; it is never imported.

- asking: which runtimes this machine has, and how one is asked, in a fresh process of its own interpreter.
- inside: the script that such an interpreter runs.
- reference: what transformers makes of the same token ids.
- comparing: from both to a verdict, and how far they may be apart.
- typed: the commands that a reader types, run as they stand.
"""
