"""Exports: a checkpoint in the formats of other runtimes, each compared with transformers after it was written."""
