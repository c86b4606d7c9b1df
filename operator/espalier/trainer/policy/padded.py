"""The slow path: the causal LM's own forward over whole sequences, padded at their ends.

Whatever the family does to attention or logits (soft caps, scales, convolutions) is honoured, and
causality keeps the padding from what is read. Every sample computes its prefix again, and all
logits exist at once. It serves families that the fast path does not know, and is the reference for
its tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.trainer.batch.packing import NO_PARENT, Row
from espalier.trainer.policy.frozen_lm_head import Evaluated


def evaluate_padded(
    causal_lm: Any, row: Row, device: torch.device, by_entropy: bool = False
) -> Evaluated:
    """As ``Policy.evaluate``, differentiable in every parameter that the logits depend on."""
    paths = [_path(row, int(row.reads[span.stop - 1])) for span in row.spans]
    ids = np.zeros((len(paths), max(len(path) for path in paths)), dtype=np.int64)
    for index, path in enumerate(paths):
        ids[index, : len(path)] = row.tokens[path]
    logits = causal_lm(input_ids=torch.from_numpy(ids).to(device), use_cache=False).logits
    samples = np.repeat(np.arange(len(paths)), [span.stop - span.start for span in row.spans])
    read = logits[torch.from_numpy(samples), torch.from_numpy(row.depths[row.reads])]
    wide = torch.promote_types(read.dtype, torch.float32)
    everything = (read.to(wide) / row.temperature).log_softmax(dim=-1)
    targets = torch.from_numpy(row.targets).to(device)
    spread = everything if by_entropy else everything.detach()
    entropy = -(spread.exp() * spread).sum(dim=-1)
    return Evaluated(everything.gather(1, targets[:, None]).squeeze(1), entropy)


def _path(row: Row, node: int) -> NDArray[np.int64]:
    nodes = []
    while node != NO_PARENT:
        nodes.append(node)
        node = int(row.parents[node])
    return np.array(nodes[::-1], dtype=np.int64)
