"""In which order callers' requests are served: a queue as vLLM's, with numbers as ours."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.sampler import turns
from espalier.sampler.turns import CALLER, Turn, Turns


@dataclass
class Sampler:
    """So many answers at a time, the lowest number first; each takes one step."""

    slots: int
    turns: Turns = field(default_factory=Turns)
    # Number, arrival, caller, turn, and what ends the request.
    waiting: list[tuple[int, int, str, Turn, ExitStack]] = field(default_factory=list)
    arrivals: int = 0

    def send(self, caller: str, requests: int = 1, answers: int = 1) -> None:
        for _ in range(requests):
            ends = ExitStack()
            turn = ends.enter_context(self.turns.taken(caller, answers))
            self.arrivals += 1
            heapq.heappush(self.waiting, (turn.number, self.arrivals, caller, turn, ends))

    def step(self) -> list[tuple[str, int]]:
        """Serves what is next: whose, and as the how manieth it came."""
        count = min(self.slots, len(self.waiting))
        served = [heapq.heappop(self.waiting) for _ in range(count)]
        for *_, turn, ends in served:
            self.turns.served(turn)
            ends.close()
        return [(caller, arrival) for _, arrival, caller, *_ in served]

    def withdraw(self, caller: str, requests: int = 1) -> None:
        """Takes back the caller's last requests."""
        own = sorted((one for one in self.waiting if one[2] == caller), key=lambda one: one[1])
        for one in own[-requests:]:
            self.waiting.remove(one)
            one[-1].close()
        heapq.heapify(self.waiting)


def closed_loop(sampler: Sampler, steps: int) -> Counter[str]:
    """Callers who send again for each answer; how many each got."""
    got = Counter[str]()
    for _ in range(steps):
        for caller, _ in sampler.step():
            got[caller] += 1
            sampler.send(caller)
    return got


@pytest.mark.parametrize("answers", [1, 64])
def test_a_newcomer_goes_before_what_waits_of_a_flood(answers: int) -> None:
    sampler = Sampler(slots=4)
    sampler.send("flood", 256)
    for _ in range(5):
        sampler.step()
    sampler.send("ann", answers=answers)
    assert "ann" in dict(sampler.step())


def test_whoever_keeps_more_in_flight_is_served_no_more_and_no_less() -> None:
    """Numbers of requests in flight, in place of ours, would serve the one with fewer alone."""
    sampler = Sampler(slots=8)
    for caller, in_flight in (("many", 640), ("few", 64), ("fewer", 63)):
        sampler.send(caller, in_flight)
    got = closed_loop(sampler, steps=300)
    assert max(got.values()) - min(got.values()) <= 8


@given(st.lists(st.sampled_from(["ann", "bob", "ann 8", "step"]), max_size=80), st.integers(1, 3))
def test_of_one_caller_requests_are_served_as_they_came(moves: list[str], slots: int) -> None:
    sampler, served = Sampler(slots), list[tuple[str, int]]()
    for move in [*moves, *["step"] * len(moves)]:
        caller, _, answers = move.partition(" ")
        if move == "step":
            served += sampler.step()
        else:
            sampler.send(caller, answers=int(answers or 1))
    assert not sampler.waiting
    for caller in ("ann", "bob"):
        own = [arrival for name, arrival in served if name == caller]
        assert own == sorted(own)


def test_what_is_left_of_a_burst_waits_for_none_of_its_callers_later_requests() -> None:
    sampler = Sampler(slots=4)
    sampler.send("ann", 64)
    served = list[int]()
    for _ in range(60):
        # From here on it has sixteen in flight.
        served += [arrival for _, arrival in sampler.step()]
        sampler.send("ann", max(0, min(4, 16 - len(sampler.waiting))))
    assert set(range(1, 65)) <= set(served)


def test_no_stream_of_newcomers_makes_a_flood_wait_for_ever() -> None:
    sampler = Sampler(slots=1)
    sampler.send("flood", 8)
    got = Counter[str]()
    for number in range(64):
        sampler.send(f"newcomer {number}")
        got.update(caller.split()[0] for caller, _ in sampler.step())
    assert got["flood"] == 8


def test_a_request_counts_as_many_times_as_it_has_answers() -> None:
    sampler = Sampler(slots=1)
    sampler.send("groups", 4, answers=8)
    sampler.send("singles", 32)
    order = [caller for _ in range(36) for caller, _ in sampler.step()]
    # Of both eight answers, and eight again.
    assert Counter(order[:9]) == {"groups": 1, "singles": 8}
    assert Counter(order[:18]) == {"groups": 2, "singles": 16}


def test_what_a_flood_withdraws_sends_nobody_behind_it() -> None:
    sampler = Sampler(slots=1)
    sampler.send("flood", 64)
    sampler.step()
    sampler.withdraw("flood")
    sampler.send("ann")
    # One of the flood had come to the same turn.
    assert "ann" in [caller for _ in range(2) for caller, _ in sampler.step()]


def test_what_a_caller_withdraws_does_not_send_its_later_requests_to_the_back() -> None:
    sampler = Sampler(slots=1)
    sampler.send("runs", 2000)
    sampler.step()
    sampler.withdraw("runs", 1998)
    sampler.send("flood", 2000)
    sampler.send("runs")
    assert [caller for _ in range(4) for caller, _ in sampler.step()].count("runs") == 2


def test_what_is_given_up_counts_once_its_turn_has_come() -> None:
    turns_of = Turns()
    with turns_of.taken("ann", 8), turns_of.taken("bob", 1) as of_bob:
        turns_of.served(of_bob)
    with turns_of.taken("ann", 1) as later:
        assert later.number == 8


def test_who_has_nothing_in_flight_is_forgotten() -> None:
    turns_of = Turns()
    for caller in map(str, range(1000)):
        with turns_of.taken(caller, 1) as turn:
            turns_of.served(turn)
    assert not turns_of._lines


class Engine:
    """Stands for vLLM's client of its engine; ``seen`` are the numbers of requests that began."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.arguments: dict[str, dict[str, Any]] = {}
        self.open = 0

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, priority: int = 0
    ) -> AsyncIterator[str]:
        self.seen[request_id] = priority
        self.arguments[request_id] = sampling_params.extra_args
        self.open += 1
        try:
            for token in "ab":
                yield token
        finally:
            self.open -= 1


def sample(engine: Any, request_id: str, answers: int = 1, **given: Any) -> Any:
    return engine.generate({}, SimpleNamespace(n=answers, extra_args=None), request_id, **given)


async def test_every_sample_of_a_request_has_its_callers_number_whatever_was_asked() -> None:
    engine = Engine()
    turns.install(engine)

    async def request(caller: str) -> None:
        CALLER.set(caller)
        # As vLLM's search of beams does it: in tasks, and without a priority.
        beams = (asyncio.create_task(anext(sample(engine, f"{caller} {n}"))) for n in range(3))
        await asyncio.gather(*beams)
        assert await anext(sample(engine, f"{caller} last", 8, priority=-5)) == "a"

    await asyncio.create_task(request("ann"))
    assert engine.seen == {"ann 0": 0, "ann 1": 1, "ann 2": 2, "ann last": 3}
    await asyncio.create_task(request("bob"))
    assert engine.seen["bob 0"] == 11
    assert engine.arguments["ann 2"] == {"espalier_caller": "ann"}
    assert engine.arguments["bob last"] == {"espalier_caller": "bob"}


async def test_a_sample_that_nobody_reads_on_ends_at_once() -> None:
    engine = Engine()
    turns.install(engine)
    outputs = sample(engine, "streamed")
    assert await anext(outputs) == "a"
    assert engine.open == 1
    await outputs.aclose()
    assert engine.open == 0
