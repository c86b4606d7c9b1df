"""Says in a sentence what a run waits for. Pure."""

from __future__ import annotations

from collections.abc import Callable

from espalier.api.meta import Condition
from espalier.api.trainingrun import TrainingRun
from espalier.core import conditions
from espalier.core.run.alignment import MISALIGNED
from espalier.core.run.run import SUSPENDED
from espalier.core.run.run_waits import AWAITING_CLIENT
from espalier.core.run.turn import SUCCEEDED


def why(run: TrainingRun, read: Callable[[str], TrainingRun | None]) -> str:
    """A sentence about a run; if it waits for another run, about what that one waits for.

    Args:
        run: as read.
        read: reads another run of the namespace; None where it is not to be told of.
    """
    name, status = run.metadata.name, run.status
    if status.observed_generation < run.metadata.generation:
        seen = "has not been seen" if status.observed_generation < 0 else "was edited, unseen"
        return f"{name} {seen} by the operator yet: is it running, and does it watch here?"
    for kind, sentence in _TELLING.items():
        condition = conditions.find(status.conditions, kind)
        if condition is not None and condition.status == "True":
            return sentence(name, condition)
    ready = conditions.find(status.conditions, conditions.READY)
    if ready is None:
        return f"{name} has no condition Ready: was it made by another version of Espalier?"
    if ready.reason == "ModelBusy" and (other := _other(ready.message)):
        found = read(other)
        if found is not None:
            # Statuses are of different moments: two runs may say that they wait for each other.
            rest = why(found, lambda one: None if one == name else read(one))
            return f"{name} waits for {other} to end; {rest}"
    return f"{name} waits, {ready.reason}: {ready.message}"


def _held(name: str, condition: Condition) -> str:
    how = f"and goes on with `espalier run resume {name}`"
    if condition.reason == "HeadPinned":
        how = "and goes on when the head is not pinned with onPin Pause"
    if condition.reason == MISALIGNED:
        how = "and goes on once logprobs.mismatchKLThreshold is raised or onMisaligned is Warn"
    return f"{name} is held, {how}: {condition.message}"


def _trains(name: str, condition: Condition) -> str:
    if condition.reason == AWAITING_CLIENT:
        return f"{name} waits for your script to train it ({condition.message})."
    return f"{name} waits for nothing: it trains ({condition.message})."


# In this order: the first of these conditions that is True says what a run waits for.
_TELLING: dict[str, Callable[[str, Condition], str]] = {
    SUCCEEDED: lambda name, condition: (
        f"{name} waits for nothing: it has taken all its steps ({condition.message})."
    ),
    conditions.STALLED: lambda name, condition: (
        f"{name} needs you, {condition.reason}: {condition.message}"
    ),
    SUSPENDED: _held,
    conditions.READY: _trains,
}


def _other(message: str) -> str:
    """The run that a message of reason ModelBusy names."""
    words = message.split()
    return words[1] if words[:1] == ["TrainingRun"] else ""
