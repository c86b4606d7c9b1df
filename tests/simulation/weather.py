"""What can go wrong between an operator and the rest, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from espalier.api.wire.problem import Problem
from espalier.controllers.peers.sampler_client import RolloutError
from espalier.controllers.peers.trainer_client import TrainerError
from espalier.kube.cluster import ClusterError

LATENCY_SECONDS = 0.001
WATCH_LAG_SECONDS = 0.01
LISTS = ("list", "each")
GUARDED = ("apply", "apply_status", "replace")


@dataclass(frozen=True)
class Fault:
    """What the caller gets instead of its answer; ``lands``: the call took effect all the same."""

    error: Exception
    lands: bool = False
    seconds: float = 0.0


class Weather:
    """Calm: every call takes a moment, every event arrives once and in order."""

    def __init__(self, lag: float = WATCH_LAG_SECONDS) -> None:
        self.lag = lag
        # While a wait is long: nothing is promised to come about as long as all goes wrong.
        self.lull = False

    def latency(self) -> float:
        """Seconds that a request or an answer travels."""
        return LATENCY_SECONDS

    def fault(self, target: str, verb: str) -> Fault | None:
        """What happens to a call."""
        return None

    def deliveries(self) -> list[float]:
        """In how many seconds each copy of an event arrives; none of a lost one."""
        return [self.lag]

    def expiry(self) -> float | None:
        """In how many seconds the watch that lost an event ends with 410 Gone."""
        return None

    def kill_at(self) -> int | None:
        """The step at which the next life of the operator ends."""
        return None

    def calm(self) -> None:
        """From now on nothing goes wrong."""


class Storm(Weather):
    """Everything goes wrong now and then: calls, events, and the operator itself."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._rate = self._random.choice([0.02, 0.1, 0.25])
        self._losses = self._random.choice([0.0, 0.05, 0.3])
        self._mean_life = self._random.choice([0, 100, 400])
        self._slow = self._random.choice([0.005, 0.05, 0.5])
        self._ended = False

    @property
    def _over(self) -> bool:
        return self._ended or self.lull

    def latency(self) -> float:
        return LATENCY_SECONDS if self._over else self._random.expovariate(1 / self._slow)

    def fault(self, target: str, verb: str) -> Fault | None:
        if self._over or self._random.random() >= self._rate:
            return None
        return self._random.choice(FAULTS[target])(self._random, verb)

    def deliveries(self) -> list[float]:
        if self._over:
            return [self.lag]
        drawn = self._random.random()
        if drawn < self._losses:
            return []
        copies = 2 if drawn > 0.9 else 1
        return [self._random.expovariate(1 / self._slow) for _ in range(copies)]

    def expiry(self) -> float | None:
        return self._random.uniform(0.1, 2.0)

    def kill_at(self) -> int | None:
        if self._over or not self._mean_life:
            return None
        return 1 + int(self._random.expovariate(1 / self._mean_life))

    def calm(self) -> None:
        self._ended = True


def _conflict(_: random.Random, verb: str) -> Fault | None:
    if verb not in GUARDED:
        return None
    return Fault(ClusterError(409, "Conflict", "the object has been modified"))


def _throttled(rng: random.Random, _: str) -> Fault:
    seconds = float(rng.randint(1, 3))
    return Fault(ClusterError(429, "TooManyRequests", "too many requests", seconds))


def _gone(_: random.Random, verb: str) -> Fault | None:
    return Fault(ClusterError(410, "Expired", "continue token")) if verb in LISTS else None


def _internal(rng: random.Random, _: str) -> Fault:
    return Fault(ClusterError(500, "InternalError", "etcd"), lands=rng.random() < 0.5)


def _timeout(rng: random.Random, _: str) -> Fault:
    return Fault(ClusterError(0, "Timeout", "no answer"), rng.random() < 0.5, seconds=30.0)


def _reset(rng: random.Random, _: str) -> Fault:
    return Fault(ClusterError(0, "ConnectionFailed", "connection reset"), rng.random() < 0.5)


def _trainer(rng: random.Random, _: str) -> Fault:
    problem = Problem(detail="connection reset", reason="TrainerUnreachable")
    return Fault(TrainerError(0, problem), rng.random() < 0.5, rng.choice([0.0, 3.0]))


def _rollout(rng: random.Random, _: str) -> Fault:
    problem = Problem(detail="connection reset", reason="RolloutUnreachable")
    return Fault(RolloutError(0, problem), rng.random() < 0.5, rng.choice([0.0, 3.0]))


Draw = Callable[[random.Random, str], Fault | None]
FAULTS: dict[str, list[Draw]] = {
    "cluster": [_conflict, _conflict, _throttled, _gone, _internal, _timeout, _reset, _reset],
    "trainer": [_trainer],
    "rollouts": [_rollout],
}
