"""The pods that the operator talks to, and their last answers."""
