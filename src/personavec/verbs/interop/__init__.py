"""Vectors for other programs, and from them: `interop`."""
