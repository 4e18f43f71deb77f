"""Persona vectors: extract them, prove that they work, steer and watch with them."""

__version__ = "0.1.0"
