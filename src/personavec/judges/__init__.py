"""Judges: who says how strongly a reply shows a trait."""
