"""The loss that a run declares by its customRef."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from espalier.api.run.loss import CustomRef
from espalier.loop.custom_loss import LossDatum, Weighed
from espalier.rewards.failure import Cause, Failure
from espalier.rewards.module import ModuleError, check
from espalier.runner.custom_loss.process import COMMAND, MEMORY_BYTES, Call, asked
from espalier.runner.run_end import UserError
from espalier.runner.scoring import seccomp
from espalier.runner.user_modules import mounted_modules

ARGUMENTS = ("data", "logprobs")
# Where timeouts.lossSeconds is unset.
SECONDS = 60
# In front of the metrics that the function gives; and the loss itself.
METRICS = "loss/"
VALUE = "loss/custom"
_MEND = "Mend the function in its ConfigMap"
_REMEDIES: dict[Cause, str] = {
    "Timeout": f"{_MEND}, raise timeouts.lossSeconds, or give a step fewer tokens: "
    "groupsPerStep, groupSize, sampling.maxTokens",
    "Memory": f"{_MEND}: beside its data it has {MEMORY_BYTES >> 30} GiB; or give a step fewer "
    "tokens: groupsPerStep, groupSize, sampling.maxTokens",
    "Raised": f"{_MEND}: it computes with autograd.numpy, and has no network, files, threads "
    "and processes",
}


@dataclass(frozen=True)
class DeclaredLoss:
    """A function of a user's module.

    Attributes:
        ref: of the run.
        source: of the module.
        seconds: that one call may take.
        command: starts its process.
    """

    ref: CustomRef
    source: str
    seconds: int = SECONDS
    command: Sequence[str] = field(default=COMMAND)

    async def differentiate(self, data: Sequence[LossDatum]) -> Weighed:
        """``-dLoss/dlogprob`` of each sample, and the metrics of the function.

        Raises:
            UserError: ``LossFailed``: the function gave no loss.
            WaitError: its process did not start.
        """
        call = Call(
            source=self.source,
            file=self.ref.key,
            function=self.ref.function,
            seconds=self.seconds,
            data=list(data),
        )
        found = await asked(call, command=self.command)
        if isinstance(found, Failure):
            detail = f"{_named(self.ref)}: {found.cause}: {found.detail}"
            raise UserError("LossFailed", detail, _REMEDIES.get(found.cause, _MEND))
        weights = [[-slope for slope in row] for row in found.gradient]
        metrics = {f"{METRICS}{name}": value for name, value in found.metrics.items()}
        return weights, {**metrics, VALUE: found.loss}


_MOUNTED = mounted_modules()


def open_loss(ref: CustomRef, module: Callable[[str, str], str] = _MOUNTED) -> DeclaredLoss:
    """The loss; nothing of it has run yet.

    Args:
        ref: of the run.
        module: the text of a module by ConfigMap and key; ModuleError where there is none.

    Raises:
        UserError: ``LossInvalid``: the module has no such function. ``ScoringUnconfined``: nothing
            here would confine it.
    """
    try:
        source = module(ref.name, ref.key)
        check(source, ref.function, ARGUMENTS)
    except ModuleError as error:
        raise UserError(
            "LossInvalid",
            f"{_named(ref)} {error}",
            "Check name and key of loss.customRef, or mend the module",
        ) from error
    if not seccomp.supported():
        raise UserError(
            "ScoringUnconfined",
            "loss Custom runs a module of a ConfigMap, and this kernel has no seccomp filters to "
            "confine that",
            "Use Linux on x86_64 or aarch64 with seccomp, or another loss",
        )
    return DeclaredLoss(ref, source)


def _named(ref: CustomRef) -> str:
    return f"loss.customRef: {ref.function} of configmap/{ref.name}/{ref.key}"
