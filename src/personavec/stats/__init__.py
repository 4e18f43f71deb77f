"""Plain numbers: intervals and nulls."""
