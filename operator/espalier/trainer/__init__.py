"""The trainer: LoRA training of a base model as a service, with a log that survives crashes."""

from espalier.trainer.memory.allocator import align_large_blocks

# Here, because importing transformers makes torch's first tensor.
align_large_blocks()
