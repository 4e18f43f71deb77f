"""The worker plugin: steering and reading inside vLLM. Needs torch, numpy, safetensors and vLLM, nothing else."""
