"""What a user asks for, one module or folder each."""
