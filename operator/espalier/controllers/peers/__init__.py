"""The pods that the operator talks to, and what it told them."""
