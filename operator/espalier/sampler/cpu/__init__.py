"""What only vLLM on a CPU needs; a GPU's pod imports none of it."""
