"""Persona vectors: extract, watch, steer, prevent, screen."""

__version__ = "0.1.0"
