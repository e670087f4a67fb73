"""Find out what a publish has to do again: nothing, the card alone, or some stages."""
