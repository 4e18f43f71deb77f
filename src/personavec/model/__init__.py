"""A model as blocks, tokens and numbers: loading, hooks, activations, logits, and servers that are asked."""
