"""Finding a persona vector and proving it: `extract`."""
