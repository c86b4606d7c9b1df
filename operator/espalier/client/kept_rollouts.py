"""The rollouts that an optimizer step learns from, to be kept beside its checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.client.call import Call
from espalier.client.rollout import Rollout


@runtime_checkable
class HasRollouts(Protocol):
    """A batch of the loop."""

    @property
    def rollouts(self) -> Sequence[Rollout]:
        """All of them, group after group."""
        ...


# What a caller may give of its own: records are kept as they are.
Given = HasRollouts | Sequence[Rollout | Mapping[str, Any]]


class Trajectories(list[TrajectoryPayload]):
    """What to train on, with the rollouts of the whole batch, those left out included.

    A step that learns from it keeps them all beside its checkpoint.
    """

    def __init__(self, payloads: Iterable[TrajectoryPayload], rollouts: Sequence[Rollout]) -> None:
        super().__init__(payloads)
        self.rollouts = rollouts


@dataclass(frozen=True)
class _Learnt:
    """A gradient command: the rollouts that it came from, and the trace ids that it trained on."""

    call: Call[Any]
    rollouts: tuple[Rollout, ...]
    ids: frozenset[str]


class Kept:
    """What gradient commands were given since the last optimizer step; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._learnt: list[_Learnt] = []
        # The last step, and how many of those it took.
        self._step: tuple[Call[Any], int] | None = None

    def learn(self, call: Call[Any], trajectories: Sequence[object]) -> None:
        """A command adds gradients of trajectories: of a batch, rollouts, or payloads alone."""
        if isinstance(trajectories, Trajectories):
            rollouts = tuple(trajectories.rollouts)
        else:
            rollouts = tuple(item for item in trajectories if isinstance(item, Rollout))
        ids = frozenset(_ids(trajectories))
        with self._lock:
            self._forget_stepped()
            self._learnt.append(_Learnt(call, rollouts, ids))

    def records(self, given: Given | None) -> list[dict[str, Any]]:
        """Records for a step: of what is given, else of all rollouts that were learnt from."""
        with self._lock:
            self._forget_stepped()
            learnt = [entry for entry in self._learnt if not entry.call.failed()]
        ids = frozenset[str]().union(*(entry.ids for entry in learnt))
        if given is None:
            # One that several commands learnt from is one rollout.
            found = {rollout.trace_id: rollout for entry in learnt for rollout in entry.rollouts}
            return [r.record(trained=r.trace_id in ids) for r in found.values()]
        items = given.rollouts if isinstance(given, HasRollouts) else given
        return [
            item.record(trained=item.trace_id in ids) if isinstance(item, Rollout) else dict(item)
            for item in items
        ]

    def step(self, call: Call[Any]) -> None:
        """An optimizer step takes what there is; if it fails, the next one does."""
        with self._lock:
            self._step = (call, len(self._learnt))

    def drop(self) -> None:
        """The gradients are gone."""
        with self._lock:
            self._learnt, self._step = [], None

    def _forget_stepped(self) -> None:
        if self._step is not None and not self._step[0].failed():
            del self._learnt[: self._step[1]]
        self._step = None


def _ids(trajectories: Sequence[object]) -> list[str]:
    found = []
    for item in trajectories:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, (Rollout, TrajectoryPayload)) and item.trace_id is not None:
            found.append(item.trace_id)
    return found
