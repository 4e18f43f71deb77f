"""What the hardware allows: how much a pass may hold, what fits into memory, and numbers of fewer bits."""
