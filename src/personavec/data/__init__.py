"""Data sets as conversations, and sheets of reply pairs, without torch: samples, file readers, subsets."""
