"""A trainer and rollouts that keep the wire contract without computing anything."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from espalier.api.metric_names import REWARD, STEP_REWARD, TOKENS_SAMPLED, TOKENS_TRAINED
from espalier.api.wire.commits import Commit, CommitPage
from espalier.api.wire.import_state import ImportState
from espalier.api.wire.problem import Problem
from espalier.api.wire.rollout_control import Served, ServeRequest
from espalier.api.wire.trainer import Assignment, TrainerState, Usage
from espalier.controllers.peers.importer_client import ImporterError
from espalier.controllers.peers.peer import Peer
from espalier.controllers.peers.sampler_client import RolloutError
from espalier.controllers.peers.trainer_client import TrainerError
from espalier.core.checkpoints import run_tokens
from espalier.core.names import checkpoint_name, parse_checkpoint_name

# Tokens of each step.
SAMPLED, TRAINED = 64.0, 40.0


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass
class Volume:
    """One model's part of the volume: it outlives every trainer pod."""

    assignment: Assignment | None = None
    commits: list[Commit] = field(default_factory=list)
    position: Commit | None = None
    run_steps: dict[str, int] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)


class ScriptedTrainer:
    """Trainers by model; ``up`` are the addresses that answer."""

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.up: set[str] = set()
        # Every address that was ever asked anything.
        self.asked: set[str] = set()
        self.problem: Problem | None = None
        self.warnings: list[Problem] = []
        self.refusal: Problem | None = None
        # The rank of what it writes; 0 are full weights.
        self.rank = 16
        # When clients last called, on the loop's clock; None: one always does.
        self.called: float | None = None
        self._grown = asyncio.Condition()

    def volume(self, model: str) -> Volume:
        return self.volumes.setdefault(model, Volume())

    async def assign(self, peer: Peer, assignment: Assignment) -> TrainerState:
        self._reach(peer)
        volume = self.volume(peer.model)
        held = volume.assignment
        if self.refusal is not None:
            raise TrainerError(422, self.refusal)
        if held is not None and assignment.term < held.term:
            problem = Problem(detail=f"the trainer is at {held.term}", reason="StaleTerm")
            raise TrainerError(409, problem)
        if held is None or assignment.term > held.term:
            volume.position = None
            volume.assignment = assignment
        else:
            volume.assignment = held.model_copy(update={"run": assignment.run})
        return await self.state(peer)

    async def state(self, peer: Peer) -> TrainerState:
        self._reach(peer)
        volume = self.volume(peer.model)
        held = volume.assignment
        assert held is not None
        at = volume.position
        return TrainerState(
            model=peer.model,
            run=held.run,
            term=held.term,
            branch=held.branch,
            step=at.step if at else held.base_step,
            run_step=volume.run_steps.get(held.run, 0),
            digest=at.digest if at else held.base,
            checkpoint=at.name if at else held.base_name,
            pending=0,
            cursor={},
        )

    async def commits(self, peer: Peer, after: int, wait_seconds: int) -> CommitPage:
        self._reach(peer)
        volume = self.volume(peer.model)
        try:
            async with asyncio.timeout(wait_seconds or 0.001), self._grown:
                await self._grown.wait_for(lambda: len(volume.commits) > after)
        except TimeoutError:
            pass
        self._reach(peer)
        told = [
            commit.model_copy(update={"stored": commit.digest not in volume.removed})
            for commit in volume.commits[after : after + 3]
        ]
        return CommitPage(
            commits=told,
            problem=self.problem,
            warnings=self.warnings,
        )

    async def usage(self, peer: Peer) -> Usage:
        self._reach(peer)
        if self.called is None:
            return Usage(quiet_seconds=0)
        return Usage(quiet_seconds=asyncio.get_running_loop().time() - self.called)

    async def step(self, model: str, reward: float = 0.5) -> Commit:
        """One optimizer step of the assigned run, whose samples had that mean reward."""
        volume = self.volume(model)
        held = volume.assignment
        assert held is not None
        at = volume.position
        step = (at.step if at else held.base_step) + 1
        name = checkpoint_name(model, held.branch, step)
        sampled = at.name if at else held.base_name
        own = parse_checkpoint_name(model, sampled) is not None
        run_step = volume.run_steps.get(held.run, 0) + 1
        volume.run_steps[held.run] = run_step
        commit = Commit(
            index=len(volume.commits) + 1,
            name=name,
            model=model,
            run=held.run,
            step=step,
            run_step=run_step,
            branch=held.branch,
            term=held.term,
            parent=at.digest if at else held.base,
            parent_name=sampled,
            digest=digest(f"{name}/{held.term}/{len(volume.commits)}"),
            size_bytes=1,
            lora_rank=self.rank,
            learning_rate=1e-4,
            group_size=8,
            loss="importance_sampling",
            metrics={
                STEP_REWARD: reward,
                "group/zero_variance_fraction": 0.0,
                TOKENS_SAMPLED: SAMPLED,
                TOKENS_TRAINED: TRAINED,
            },
            measured={sampled: {REWARD: reward}} if own else {},
            created="2026-01-01T00:00:00Z",
        )
        taken = run_tokens.of_run([*volume.commits, commit], commit.run)
        commit = commit.model_copy(update={"run_tokens": taken})
        volume.position = commit
        volume.commits.append(commit)
        async with self._grown:
            self._grown.notify_all()
        return commit

    def _reach(self, peer: Peer) -> None:
        self.asked.add(peer.ip)
        if peer.ip not in self.up:
            raise TrainerError(0, Problem(detail="connection refused", reason="TrainerUnreachable"))


class ScriptedImporter:
    """Importers that say how far they are; before they are told to, they say nothing."""

    def __init__(self) -> None:
        self.told: ImportState | None = None
        self.asked = 0

    async def progress(self, peer: Peer) -> ImportState:
        self.asked += 1
        if self.told is None:
            raise ImporterError(0, Problem(detail="refused", reason="ImporterUnreachable"))
        return self.told


class ScriptedRollouts:
    """Rollout pods by address: what they must serve to be ready, and all they were told."""

    def __init__(self) -> None:
        self.serving: dict[str, list[str]] = {}
        self.told: list[tuple[str, list[str]]] = []
        self.up: set[str] = set()
        self.broken: set[str] = set()
        # Models of which all is trained: their pods hold one set of weights.
        self.full: set[str] = set()
        # Called with what is asked for, before it is done.
        self.on_serve: Callable[[list[str]], None] = lambda adapters: None

    async def serve(self, peer: Peer, request: ServeRequest) -> Served:
        if peer.ip not in self.up:
            raise RolloutError(0, Problem(detail="connection refused", reason="Unreachable"))
        self.on_serve(request.adapters)
        if broken := self.broken.intersection(request.adapters):
            detail = f"{', '.join(sorted(broken))} is damaged"
            raise RolloutError(422, Problem(detail=detail, reason="FileAltered"))
        full = peer.model in self.full
        if full and len(request.adapters) > 1:
            raise RolloutError(422, Problem(detail="one at a time", reason="TooManyAdapters"))
        self.serving[peer.ip] = request.adapters
        self.told.append((peer.ip, request.adapters))
        return Served(adapters=request.adapters, ready=True, base=not (full and request.adapters))
