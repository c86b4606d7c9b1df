"""One policy on one process: log-probs, gradients, the optimizer, and a retry without memory."""
