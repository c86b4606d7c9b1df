"""Who gets an adapter slot where callers want more of them than there are: by an engine as vLLM's.

The engine begins what waits by the lowest number, and passes over what needs an adapter for which
no slot is free, as vLLM's scheduler does; numbers are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.sampler.adapter_slots import AdapterSlots, Need
from espalier.sampler.turns import Turn, Turns


@dataclass(eq=False)
class Request:
    """Waits or runs for so many ``steps`` more; adapter 0 is the base."""

    caller: str
    adapter: int
    steps: int
    arrival: int
    turn: Turn
    ends: ExitStack

    @property
    def key(self) -> tuple[int, int]:
        return self.turn.number, self.arrival


def needs(requests: Iterable[Request]) -> list[Need]:
    return [Need(*one.key, one.caller, one.adapter) for one in requests if one.adapter]


@dataclass
class Engine:
    """Runs so many answers at a time, of so many adapters."""

    slots: int
    answers: int = 64
    shared: bool = True
    turns: Turns = field(default_factory=Turns)
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    arrivals: int = 0
    closed: set[int] = field(default_factory=set)
    ran: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.adapter_slots = AdapterSlots(self.slots)

    def send(self, caller: str, adapter: int, steps: int = 4, count: int = 1) -> Request:
        for _ in range(count):
            ends = ExitStack()
            turn = ends.enter_context(self.turns.taken(caller, 1))
            self.arrivals += 1
            one = Request(caller, adapter, steps, self.arrivals, turn, ends)
            self.waiting.append(one)
        return one

    def withdraw(self, one: Request) -> None:
        for queue in (self.waiting, self.running):
            if one in queue:
                queue.remove(one)
        one.ends.close()

    def step(self) -> list[Request]:
        """One token of all that runs; what ended by it."""
        begun = max((one.turn.number for one in self.running), default=0)
        self.closed = self.adapter_slots.closed(needs(self.running), needs(self.waiting), begun)
        for one in sorted(self.waiting, key=lambda one: one.key):
            full = len(self.in_slots) == self.slots and one.adapter not in self.in_slots
            if one.adapter and (full or (self.shared and one.adapter in self.closed)):
                continue
            if len(self.running) < self.answers:
                self.waiting.remove(one)
                self.running.append(one)
        self.ran = list(self.running)
        for one in self.ran:
            one.steps -= 1
        ended = [one for one in self.ran if not one.steps]
        for one in ended:
            self.turns.served(one.turn)
            self.withdraw(one)
        return ended

    @property
    def in_slots(self) -> set[int]:
        return {one.adapter for one in self.running} - {0}

    def slots_of(self, caller: str) -> int:
        """How many a caller used in the last step."""
        return len({one.adapter for one in self.ran if one.caller == caller} - {0})


@dataclass
class Flood:
    """A caller who sends again for each answer, so that each adapter is asked for all the time."""

    engine: Engine
    caller: str
    adapters: range
    in_flight: int = 8
    steps: int = 4

    def __post_init__(self) -> None:
        for n in range(self.in_flight):
            # Of one adapter not all end at once.
            again, place = divmod(n, len(self.adapters))
            self.engine.send(self.caller, self.adapters[place], 1 + again % self.steps)

    def answer(self, ended: list[Request]) -> None:
        for one in ended:
            if one.caller == self.caller:
                self.engine.send(self.caller, one.adapter, self.steps)


def go_on(engine: Engine, *floods: Flood, steps: int) -> list[Request]:
    """What ended meanwhile."""
    all_ended = []
    for _ in range(steps):
        ended = engine.step()
        all_ended += ended
        for flood in floods:
            flood.answer(ended)
    return all_ended


@pytest.mark.parametrize("shared", [False, True])
def test_whoever_keeps_all_slots_busy_keeps_nobody_out(shared: bool) -> None:
    engine = Engine(slots=4, shared=shared)
    flood = Flood(engine, "flood", range(1, 5), in_flight=32)
    go_on(engine, flood, steps=20)
    ann = engine.send("ann", 5, steps=1)
    # The longest answer that runs has four steps, and then it is begun.
    assert (ann in go_on(engine, flood, steps=5)) is shared
    assert shared or ann not in go_on(engine, flood, steps=1000)


def test_a_free_slot_is_not_for_what_a_flood_has_had_waiting_for_longer() -> None:
    engine = Engine(slots=4)
    flood = Flood(engine, "flood", range(1, 41), in_flight=80)
    go_on(engine, flood, steps=20)
    ann = engine.send("ann", 50, steps=1)
    assert ann in go_on(engine, flood, steps=5)


def test_slots_are_shared_out_evenly_among_callers_who_want_more() -> None:
    engine = Engine(slots=4)
    many = Flood(engine, "many", range(1, 9), in_flight=32)
    go_on(engine, many, steps=20)
    assert engine.slots_of("many") == 4
    few = Flood(engine, "few", range(11, 13))
    go_on(engine, many, few, steps=20)
    for _ in range(20):
        go_on(engine, many, few, steps=1)
        assert engine.slots_of("few") == 2


def listed(*pairs: tuple[str, int]) -> list[Need]:
    """Needs of callers and adapters, in the order of their turns and arrival."""
    return [Need(0, arrival, *pair) for arrival, pair in enumerate(pairs)]


def test_a_slot_is_taken_from_the_caller_with_the_most_where_it_is_likely_to_be_free_first() -> (
    None
):
    running = listed(("one", 1), ("many", 2), ("many", 3), ("many", 2))
    assert AdapterSlots(3).closed(running, listed(("ann", 4)), begun=0) == {4, 3}


def test_the_slot_that_is_to_be_free_stays_the_same_while_somebody_waits_for_it() -> None:
    slots, waiting = AdapterSlots(2), listed(("ann", 3))
    running = listed(("many", 2), ("many", 1), ("many", 2))
    assert slots.closed(running, waiting, begun=0) == {3, 1}
    assert slots.closed(running[:2], waiting, begun=0) == {3, 1}
    assert slots.closed(running[:2], [], begun=0) == set()
    assert slots.closed(running[:2], waiting, begun=0) == {3, 2}


def test_two_free_slots_are_for_two_callers() -> None:
    running, waiting = listed(("many", 1)), listed(("ann", 2), ("ann", 3), ("bob", 4))
    assert AdapterSlots(3).closed(running, waiting, begun=0) == {3}


def test_whose_turn_has_come_stays_so_when_what_began_with_a_later_one_ends() -> None:
    slots, running = AdapterSlots(1), listed(("many", 1))
    ann = [Need(5, 0, "ann", 2)]
    assert slots.closed(running, ann, begun=4) == set()
    assert slots.closed(running, ann, begun=5) == {1, 2}
    assert slots.closed(running, ann, begun=4) == {1, 2}


def test_a_slot_that_two_use_is_not_taken_for_a_caller_who_has_as_many_as_one_of_them() -> None:
    running, waiting = listed(("many", 1), ("many", 2), ("bob", 2)), listed(("bob", 3))
    # Of the slots of "many" the one that bob does not use himself.
    assert AdapterSlots(2).closed(running, waiting, begun=0) == {3, 1}
    with_ann = [*running, *listed(("ann", 1))]
    assert AdapterSlots(2).closed(with_ann, waiting, begun=0) == {3}


def test_the_base_and_what_is_in_a_slot_wait_for_nobodys_slot() -> None:
    engine = Engine(slots=2)
    flood = Flood(engine, "flood", range(1, 3), in_flight=16)
    go_on(engine, flood, steps=10)
    engine.send("ann", 3, steps=50)
    # One of its slots is on its way to ann; the base and the other are open.
    go_on(engine, flood, steps=1)
    (open_one,) = {1, 2} - engine.closed
    base, beside = engine.send("bob", 0, steps=1), engine.send("bob", open_one, steps=1)
    assert {base, beside} <= set(go_on(engine, flood, steps=1))


def test_no_slot_is_kept_free_for_a_turn_that_is_far_away() -> None:
    """A caller's flood of the base, with other checkpoints behind it, closes nobody's adapter."""
    engine = Engine(slots=2, answers=8)
    flood = Flood(engine, "flood", range(1, 3), in_flight=16)
    go_on(engine, flood, steps=10)
    engine.send("ann", 0, count=500)
    engine.send("ann", 3)
    for _ in range(100):
        go_on(engine, flood, steps=1)
        assert not engine.closed


def test_what_is_given_up_leaves_no_adapter_closed() -> None:
    engine = Engine(slots=2)
    flood = Flood(engine, "flood", range(1, 3), in_flight=16)
    go_on(engine, flood, steps=10)
    ann = engine.send("ann", 3)
    go_on(engine, flood, steps=1)
    assert engine.closed > {3}
    engine.withdraw(ann)
    go_on(engine, flood, steps=1)
    assert engine.closed == set()


MOVES = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "eve"]), st.integers(0, 6), st.integers(0, 5)),
    max_size=60,
)


@given(MOVES, st.integers(1, 3), st.integers(1, 8))
def test_nothing_is_lost_and_an_engine_with_something_to_do_does_it(
    moves: list[tuple[str, int, int]], slots: int, answers: int
) -> None:
    """A move sends a request; or, with no steps, gives one of the caller's up and goes a step."""
    engine, open_ones = Engine(slots, answers), set[Request]()
    for caller, adapter, steps in [*moves, *[("", 0, 0)] * 6 * len(moves)]:
        if steps:
            open_ones.add(engine.send(caller, adapter, steps))
            continue
        own = sorted((one for one in open_ones if one.caller == caller), key=lambda one: one.key)
        for one in own[-1:]:
            engine.withdraw(one)
            open_ones.remove(one)
        before = len(engine.running) + len(engine.waiting)
        ended = engine.step()
        open_ones -= set(ended)
        assert len(engine.in_slots) <= slots
        assert engine.running or ended or not before
    assert not open_ones


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_a_newcomer_waits_for_no_more_answers_than_have_an_earlier_turn(
    floods: list[tuple[int, int]], slots: int
) -> None:
    longest, engine = 4, Engine(slots)
    sending = [
        Flood(engine, f"flood {n}", range(10 * n + 1, 10 * n + 1 + adapters), in_flight, longest)
        for n, (adapters, in_flight) in enumerate(floods)
    ]
    go_on(engine, *sending, steps=40)
    ann = engine.send("ann", 99, steps=1)
    # Each caller's answers from the first that is open on, up to this turn.
    opened = sorted([*engine.running, *engine.waiting], key=lambda one: one.key, reverse=True)
    first = {one.caller: one.turn.number for one in opened}
    earlier = sum(max(0, ann.turn.number - number + 1) for number in first.values())
    assert ann in go_on(engine, *sending, steps=(longest + 1) * (earlier + 1))


@given(MOVES, st.integers(1, 3))
def test_one_caller_alone_or_adapters_that_all_fit_are_served_as_by_vllm(
    moves: list[tuple[str, int, int]], slots: int
) -> None:
    def served(shared: bool, callers: dict[str, str], most: int) -> list[int]:
        engine, order = Engine(slots, 4, shared=shared), list[Request]()
        for caller, adapter, steps in [*moves, *[("", 0, 0)] * 6 * len(moves)]:
            if steps:
                engine.send(callers[caller], min(adapter, most), steps)
            else:
                order += engine.step()
        return [one.arrival for one in order]

    alone, each = dict.fromkeys(("ann", "bob", "eve"), "ann"), {n: n for n in ("ann", "bob", "eve")}
    assert served(True, alone, 6) == served(False, alone, 6)
    assert served(True, each, slots) == served(False, each, slots)
