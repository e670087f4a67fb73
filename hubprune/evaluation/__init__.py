"""Evaluations: how good and how fast a pruned model is against its base, on the same documents, prompts and tokens.

In come folders or loaded models; out come comparisons that state their errors.  Those up to harness need no torch.

- sources, tasks: lm-eval's tasks by name, their files and data sets checked before anything is computed.
- packages: what the code of tasks imports, which has to be there.
- compare, results: from lm-eval's results to paired differences, intervals and marks.
- requests: what models are asked, how requests share a row, and the memory of their answers.
- pair: base and pruned model in memory, loaded once for all that measure them.
- harness: one benchmark run from the tasks to the comparison, for folders or for models that are loaded.
- lengths: what long prompts are in tokens, and whether a base has the positions for them.
- panel, computing: variants that answer together, in this process or in several.
- batch: rows as tensors, long ones in pieces.
- models, layer_tree: models in memory, and equal layers of several models run once.
- quantized: folders in fewer bits, expanded as they are loaded.
- skeletons, streamed: models larger than memory, whose layers are read from their files one at a time.
- repetition, generation: free text, and how much it repeats itself.
- speed: time in paired rounds, and memory.
"""
