"""A frozen adapter beside the trained one: the policy that a run is held near."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from espalier.trainer.memory.planner import GIB
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError
from espalier.trainer.volume import tensor_files


@dataclass(frozen=True)
class Reference:
    """The weights of a checkpoint's adapter, by name, on the policy's device; None: the base's.

    ``size`` is in bytes.
    """

    checkpoint: Path | None = None
    weights: Mapping[str, Tensor] | None = None
    size: int = 0


NO_REFERENCE = Reference()


def load_reference(policy: Policy, checkpoint: Path, free: int) -> Reference:
    """Loads a checkpoint's adapter.

    Raises:
        CommandError: 409 for weights of other names or shapes, 413 where they take more than the
            ``free`` bytes.
    """
    tensors = tensor_files.weights_of(checkpoint)
    policy.check(tensors.shapes)
    size = sum(p.numel() * p.element_size() for p in policy.parameters.values())
    if size >= free:
        raise CommandError(
            413,
            "ReferenceTooLarge",
            f"kl.reference: the checkpoint's adapter takes {size / GIB:.3g} GiB, and a batch "
            f"may take {free / GIB:.3g} GiB in all; nothing was accumulated",
            "give the trainer more memory (spec.trainer.template), or set kl.reference: {base: {}}",
        )
    weights = {
        # A copy: on a CPU it would stay the file, mapped, and change with it.
        name: tensors[name].to(parameter.device, parameter.dtype, copy=True)
        for name, parameter in policy.parameters.items()
    }
    return Reference(checkpoint, weights, size)
