"""How a model is laid out: its blocks, and the GGUF file that it may come from."""
