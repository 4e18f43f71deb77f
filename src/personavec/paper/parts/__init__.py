"""The parts of `personavec paper`, one file each; `studies/paper.py` runs them in turn."""
