"""Bring back what pruning lost: a pruned model learns from its base what to say.

In come a base, a plan of what went, and documents as token ids; out come the tensors that changed.

models     base and pruned model in memory, sharing what they have in common, and the loss between them
texts      which documents are trained on: none that a benchmark has
training   the steps, the looks at held-out documents, and the checkpoints, by the Trainer of transformers
merging    the changed tensors, put into a copy of the base's files
"""
