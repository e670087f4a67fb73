"""Publish: check, score, prune, verify, benchmark, write, commit, load back."""
