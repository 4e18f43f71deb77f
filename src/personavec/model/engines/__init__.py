"""Where a model runs, if not in this process: `--engine vllm:URL`."""
