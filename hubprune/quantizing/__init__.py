"""From an unquantized checkpoint in a folder, and texts, to the same in fewer bits, as compressed-tensors keeps them.

schemes      which matrices get fewer bits, what has to fit, and what stands in config.json
gptq         whole numbers and scales of one matrix: rounded, or with every error made up for in the columns behind
packing      their tensors in the files, through the compressed-tensors package, and back
layerwise    the pass that goes through a model layer by layer, before and after, and keeps what each layer became
divergence   how far the two models' next tokens are from each other, from the states that left the last layer
writing      the written folder: all other tensors and files are as they were
checking     what has to be true of it
"""
