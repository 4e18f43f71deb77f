"""Measuring a trait, and checking a machine: `evaluate`, `verify`."""
