"""Studies compose verbs into one run."""
