"""Time a pruned checkpoint against its base: find both, measure, tell."""
