"""Measure what every number of drops costs: one base in memory, one scoring pass, many points."""
