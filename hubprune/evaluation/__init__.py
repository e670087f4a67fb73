"""The evaluation room: benchmarks and free text on the base and on the reloaded pruned checkpoint."""
