"""The sampler: vLLM, launched and guarded for our pods."""
