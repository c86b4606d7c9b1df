"""The network: a base model, its trained weights, and the forward pass of a packed row."""
