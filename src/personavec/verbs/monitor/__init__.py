"""Watching conversations: `monitor`."""
