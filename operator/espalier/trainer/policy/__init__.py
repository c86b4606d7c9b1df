"""The network: a base model, what of it is trained, and how a packed row passes through it."""
