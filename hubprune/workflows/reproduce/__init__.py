"""Run a published recipe again and say what is equal and what differs."""
