"""Data sets as conversations, without torch: samples, file readers, subsets."""
