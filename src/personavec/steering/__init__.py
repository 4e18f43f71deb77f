"""Persona vectors and what is done with them: projection, steering, generation, training."""
