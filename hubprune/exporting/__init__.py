"""Exports: a checkpoint in the formats of other runtimes, each compared with transformers after it was written.

In comes a folder with a checkpoint, pruned or not; out comes a GGUF file for llama.cpp, and what the comparison saw.

- families: what llama.cpp computes of each family, in one table.
- hyperparameters: the numbers of config.json that the file needs, checked.
- layers: how the layers are laid out, and what stands where a sublayer is missing.
- tensors: the list of tensors, and their bytes.
- vocabulary: what a tokenizer is to llama.cpp, and byte-level BPE.
- sentencepiece: the BPE of SentencePiece, from tokenizer.json or tokenizer.model.
- writing: all of that put together, and the file.
- quantizing: llama.cpp's own quantizer, in a process of its own.
- parity: the comparison with transformers, in another one.
- bounds: whether what it saw is the same model.
"""
