"""Run a publish on Hugging Face Jobs instead of on this machine."""
