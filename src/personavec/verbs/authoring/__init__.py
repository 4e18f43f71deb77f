"""Traits and data sets written by a language model: `write_trait`, `write_dataset`."""
