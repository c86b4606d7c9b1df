"""What is told of the memory of this rank's GPU, at the time when it is asked for."""

from __future__ import annotations

import torch

from espalier.trainer.prometheus import GPU_MEMORY


def tell() -> None:
    """Makes the series; none where there is no GPU."""
    if not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    GPU_MEMORY.labels("total").set(total)
    GPU_MEMORY.labels("allocated").set_function(torch.cuda.memory_allocated)
    GPU_MEMORY.labels("reserved").set_function(torch.cuda.memory_reserved)
    GPU_MEMORY.labels("peak").set_function(torch.cuda.max_memory_allocated)
