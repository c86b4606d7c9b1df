"""The rollout server: vLLM, launched and guarded for our pods."""
