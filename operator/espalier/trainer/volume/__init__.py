"""Files on the model's volume: bases, checkpoints, the command log, traces."""
