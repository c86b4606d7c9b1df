"""Two clients on one model, over HTTP: duplicates, resends, cuts, races and crashes in any order.

The machine sends commands as clients do and never looks at how the trainer works. What must hold
of every history: a command is applied at most once, and once if it was acknowledged; in the order
of its session, and after everything that was acknowledged before it was sent; a resend gets the
first answer to the byte; and the checkpoints, weights and gradients are those of the same commands
sent one after another by one client to a trainer that never failed.

``ESPALIER_HISTORIES=2000 pytest tests/trainer/test_clients.py`` tries more and longer histories.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import torch
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from tests.trainer import tiny
from tests.trainer.tiny import Volume

from espalier import identity
from espalier.api.wire.base import Wire
from espalier.api.wire.headers import CHECKPOINT_DIGEST, IDEMPOTENCY_KEY
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine
from espalier.trainer.http.service import Service
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume.command_log import CommandLog, Key, Kind, Record

PRIVATE = identity.generate_private_key()
KEYS = identity.PublicKeys.of(PRIVATE, PRIVATE)
AUDIENCE = "default/arith/trainer/uid-1"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
# Of the suite: the same few choices every time. Otherwise so many random ones.
HISTORIES = int(os.environ.get("ESPALIER_HISTORIES", "0"))
SECONDS = aiohttp.ClientTimeout(total=120)

Answer = tuple[int, str, str]


@dataclass
class Sent:
    """A command of a client; ``answers`` are all that it ever got, ``None`` where it was cut."""

    key: Key
    kind: Kind
    request: Wire
    first_sent: int
    acknowledged: int | None = None
    answers: list[Answer] = field(default_factory=list)

    def was_applied(self) -> bool:
        return any(status == 200 for status, _, _ in self.answers)


def command(choice: int) -> tuple[Kind, Wire]:
    """Mostly gradients, so that steps have something to step on."""
    if choice < 4:
        return "forward-backward", tiny.forward_backward(choice, inputs=SMALL[choice])
    if choice < 6:
        return "optim-step", tiny.optim_step(cursor={"next": choice})
    return "zero-grad", Empty()


SMALL = [tiny.trajectories(seed, groups=1) for seed in range(4)]
CHOICES = st.integers(0, 6)
CLIENTS = st.sampled_from(["alice", "bob"])
# How often the event loop turns before something is cut off: from "not yet sent" to "answered".
TURNS = st.integers(0, 60)


class Clients(RuleBasedStateMachine):
    """No rule has a precondition: races make states differ between runs of the same choices."""

    def __init__(self, base: Volume, policy: Policy) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=MEMORY))
        self.base, self.policy = base, policy
        self.volume = volume_with(base, self.directory / "served")
        self.runner = asyncio.Runner()
        self.clock = itertools.count()
        self.numbers = {"alice": itertools.count(), "bob": itertools.count()}
        self.sent: list[Sent] = []

    # --- what happens -----------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.policy.reset()
        self._run(self._start())

    @rule(client=CLIENTS, choice=CHOICES)
    def a_command(self, client: str, choice: int) -> None:
        self._run(self._post(self._new(client, choice)))

    @rule(client=CLIENTS, choice=CHOICES, copies=st.integers(2, 3))
    def duplicates_in_flight(self, client: str, choice: int, copies: int) -> None:
        sent = self._new(client, choice)
        self._run(self._posts([sent] * copies))

    @rule(first=CHOICES, second=CHOICES)
    def both_clients_at_once(self, first: int, second: int) -> None:
        self._run(self._posts([self._new("alice", first), self._new("bob", second)]))

    @rule(client=CLIENTS, first=CHOICES, second=CHOICES)
    def one_client_out_of_order(self, client: str, first: int, second: int) -> None:
        early, late = self._new(client, first), self._new(client, second)
        self._run(self._posts([late, early]))

    @rule(which=st.integers(0, 1000))
    def a_resend(self, which: int) -> None:
        if self.sent:
            self._run(self._post(self.sent[which % len(self.sent)]))

    @rule(client=CLIENTS, choice=CHOICES, turns=TURNS)
    def a_client_that_hangs_up(self, client: str, choice: int, turns: int) -> None:
        self._run(self._hang_up([self._new(client, choice)], turns))

    @rule(first=CHOICES, second=CHOICES, turns=TURNS)
    def a_crash_with_commands_in_flight(self, first: int, second: int, turns: int) -> None:
        both = [self._new("alice", first), self._new("bob", second)]

        async def crash() -> None:
            await self._hang_up(both, turns, kill=True)
            await self._start()

        self._run(crash())

    # --- what must hold ---------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "server"):
                self._run(self._kill())
                self._check()
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)

    def _check(self) -> None:
        for sent in self.sent:
            applied = {answer for answer in sent.answers if answer[0] == 200}
            assert len(applied) <= 1, f"{sent.key} was answered differently: {applied}"
        applied_order = self._log()
        by_key = {sent.key: sent for sent in self.sent}
        places = {record.key: place for place, record in enumerate(applied_order)}
        for sent in self.sent:
            if sent.was_applied():
                record = applied_order[places[sent.key]]
                assert (200, record.answer, record.checkpoint) in sent.answers
        for session in self.numbers:
            numbers = [r.key.seq for r in applied_order if r.key.session == session]
            assert numbers == sorted(set(numbers))
        for early, late in itertools.permutations([by_key[r.key] for r in applied_order], 2):
            if early.acknowledged is not None and early.acknowledged < late.first_sent:
                assert places[early.key] < places[late.key]
        ended, reference = self._state(self.volume), self._reference([*map(by_key.get, places)])
        assert ended[0] == reference[0]
        for mine, theirs in zip(ended[1], reference[1], strict=True):
            assert torch.equal(mine, theirs)

    def _log(self) -> list[Record]:
        log = CommandLog(self.volume.path / "models" / tiny.MODEL, lock_seconds=1.0)
        try:
            return log._records("status = 200")
        finally:
            log.close()

    def _reference(self, applied: Sequence[Sent | None]) -> tuple[object, list[torch.Tensor]]:
        """The same commands, one after another, on a trainer that never failed."""
        volume = volume_with(self.base, self.directory / "reference")
        engine = tiny.engine(volume.path, volume.base, self.policy)
        engine.assign(tiny.assignment())
        for sent in applied:
            assert sent is not None
            key = (sent.key.session, sent.key.seq)
            assert tiny.send(engine, sent.kind, sent.request, key).status == 200
        engine.state.log.close()
        return self._state(volume, engine)

    def _state(
        self, volume: Volume, engine: Engine | None = None
    ) -> tuple[object, list[torch.Tensor]]:
        """Checkpoints and position; weights and gradients. Without an engine: after a restart."""
        opened = engine or tiny.engine(volume.path, volume.base, self.policy)
        digests = [commit.digest for commit in opened.state.commits]
        position = (opened.state.position, len(opened.state.tallies))
        if engine is None:
            opened.state.log.close()
        tensors = [p.detach().clone() for p in self.policy.parameters.values()]
        gradients = [p.grad for p in self.policy.parameters.values() if p.grad is not None]
        return (digests, position), [*tensors, *(g.clone() for g in gradients)]

    # --- the trainer and its clients --------------------------------------------------------------

    def _run(self, steps: Coroutine[Any, Any, None]) -> None:
        self.runner.run(steps)

    def _new(self, client: str, choice: int) -> Sent:
        kind, request = command(choice)
        sent = Sent(Key(client, next(self.numbers[client])), kind, request, next(self.clock))
        self.sent.append(sent)
        return sent

    async def _start(self) -> None:
        self.service = Service(KEYS, AUDIENCE)
        self.server = TestServer(self.service.app())
        await self.server.start_server()
        self.http = aiohttp.ClientSession(timeout=SECONDS)
        await self.service.start(
            lambda _publish: tiny.engine(self.volume.path, self.volume.base, self.policy)
        )
        url = self.server.make_url("/assign")
        data = tiny.assignment().model_dump_json()
        async with self.http.post(url, data=data, headers=bearer("operator")) as response:
            assert response.status == 200

    async def _kill(self) -> None:
        """No farewell: what runs ends unheard, what waits never begins, connections break.

        Death in the middle of a command is the subject of test_crash.py and faults.py.
        """
        await self.http.close()
        worker = self.service._worker
        await asyncio.to_thread(lambda: worker.shutdown(wait=True, cancel_futures=True))
        await self.server.close()
        assert self.service._engine is not None
        # The kernel closes a dead process's files, and so releases its lock.
        self.service._engine.state.log.close()

    async def _post(self, sent: Sent) -> None:
        headers = bearer("gateway") | {IDEMPOTENCY_KEY: f"{sent.key.session}/{sent.key.seq}"}
        url = self.server.make_url(f"/train/{sent.kind}")
        data = sent.request.model_dump_json()
        async with self.http.post(url, data=data, headers=headers) as response:
            answer = (
                response.status,
                await response.text(),
                response.headers.get(CHECKPOINT_DIGEST, ""),
            )
        assert answer[0] in (200, 409), answer
        sent.answers.append(answer)
        if answer[0] == 200 and sent.acknowledged is None:
            sent.acknowledged = next(self.clock)

    async def _posts(self, all_sent: Sequence[Sent]) -> None:
        await asyncio.gather(*(self._post(sent) for sent in all_sent))

    async def _hang_up(self, all_sent: Sequence[Sent], turns: int, *, kill: bool = False) -> None:
        tasks = [asyncio.create_task(self._post(sent)) for sent in all_sent]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        if kill:
            await self._kill()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert end is None or isinstance(end, asyncio.CancelledError), end


def volume_with(base: Volume, path: Path) -> Volume:
    """A volume of its own with the base, which nobody writes."""
    path.mkdir(parents=True)
    (path / "bases").symlink_to(base.path / "bases")
    return Volume(path, base.base)


def bearer(subject: identity.Subject) -> dict[str, str]:
    return {"Authorization": f"Bearer {identity.issue(PRIVATE, subject, AUDIENCE)}"}


def test_every_history_of_two_clients_equals_its_commands_sent_one_by_one(
    tiny_base: Volume, shared_policy: Policy
) -> None:
    run_state_machine_as_test(
        lambda: Clients(tiny_base, shared_policy),
        settings=settings(
            max_examples=HISTORIES or 20,
            stateful_step_count=40 if HISTORIES else 14,
            derandomize=not HISTORIES,
            database=None,
            deadline=None,
            # Races do not repeat, so a failing history cannot be shrunk; it is printed as it was.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
