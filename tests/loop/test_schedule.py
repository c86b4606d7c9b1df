"""Schedules: which groups a step takes, how old they may be, and what is never asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from espalier import Asynchronous, ConfigurationError, Streaming, Synchronous
from espalier.loop.minibatches import Uses
from espalier.loop.schedule import Part, Place, Schedule


@dataclass(frozen=True)
class Group:
    number: int
    checkpoint: str


@dataclass
class Player:
    """Plays groups; those of ``hold`` end when they are released."""

    asked: list[tuple[int, str]] = field(default_factory=list)
    hold: dict[int, asyncio.Event] = field(default_factory=dict)
    fail: set[int] = field(default_factory=set)
    cancelled: list[int] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    async def play(self, numbers: Sequence[int], checkpoint: str) -> list[Group]:
        self.asked += [(number, checkpoint) for number in numbers]
        self.in_flight += len(numbers)
        self.most = max(self.most, self.in_flight)
        try:
            for number in numbers:
                if number in self.hold:
                    await self.hold[number].wait()
                if number in self.fail:
                    self.fail.remove(number)
                    raise ConnectionError(f"group {number}")
        except asyncio.CancelledError:
            self.cancelled += numbers
            raise
        finally:
            self.in_flight -= len(numbers)
        return [Group(number, checkpoint) for number in numbers]


def at(step: int, **changes: object) -> Place:
    place = Place(term=1, run_step=step, checkpoint=f"c{step}", count=2, round=0, take=2)
    return replace(place, **changes)  # type: ignore[arg-type]


async def taken(schedule: Schedule[Group], place: Place, player: Player) -> list[Part[Group]]:
    return [part async for part in schedule.parts(place, player.play)]


async def steps(schedule: Schedule[Group], player: Player, count: int) -> list[list[Part[Group]]]:
    return [await taken(schedule, at(step), player) for step in range(count)]


async def test_staleness_zero_asks_and_trains_what_synchronous_does() -> None:
    one, other = Player(), Player()
    synchronous = await steps(Synchronous(), one, 4)
    asynchronous = await steps(Asynchronous(0), other, 4)
    assert [p.groups for parts in synchronous for p in parts] == [
        p.groups for parts in asynchronous for p in parts
    ]
    assert one.asked == other.asked


@pytest.mark.parametrize("staleness", [1, 2, 5])
async def test_no_group_is_older_than_the_bound_none_is_lost_and_the_oldest_go_first(
    staleness: int,
) -> None:
    player, schedule = Player(), Asynchronous[Group](staleness)
    parts = [part for found in await steps(schedule, player, 12) for part in found]
    numbers = [group.number for part in parts for group in part.groups]
    assert numbers == list(range(24))
    assert max(age for part in parts for age in part.staleness) == staleness
    for step, part in enumerate(parts):
        ages = [step - int(group.checkpoint[1:]) for group in part.groups]
        assert tuple(ages) == part.staleness
    assert player.most <= 2 * (staleness + 1)
    await schedule.close()


@pytest.mark.parametrize("steps", [8, 7])
@pytest.mark.parametrize("uses", [Uses(), Uses(2, 1)])
async def test_no_group_is_sampled_beyond_the_runs_last_step(uses: Uses, steps: int) -> None:
    player, schedule = Player(), Asynchronous[Group](5)
    for step in range(0, steps, uses.steps):
        size = 2 * uses.minibatches
        place = at(step, count=size, take=size, uses=uses, left=steps - step)
        await taken(schedule, place, player)
    assert sorted(number for number, _ in player.asked) == list(range(2 * steps))
    # More steps, as where the run is edited, are sampled for again.
    await taken(schedule, at(steps, left=2), player)
    assert max(number for number, _ in player.asked) == 2 * steps + 3
    await schedule.close()


async def test_a_slow_group_holds_only_its_own_step_while_later_ones_are_sampled() -> None:
    player = Player(hold={0: asyncio.Event()})
    schedule = Asynchronous[Group](1)
    first = asyncio.ensure_future(taken(schedule, at(0), player))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not first.done()
    assert [number for number, _ in player.asked] == [0, 1, 2, 3]
    player.hold[0].set()
    assert [group.number for group in (await first)[0].groups] == [0, 1]
    await schedule.close()


@pytest.mark.parametrize("change", [{"term": 2}, {"recipe": "edited"}])
async def test_a_rollback_or_an_edit_drops_what_is_in_flight(change: dict[str, object]) -> None:
    player = Player(hold={2: asyncio.Event(), 3: asyncio.Event()})
    schedule = Asynchronous[Group](1)
    await taken(schedule, at(0), player)
    player.hold.clear()
    (part,) = await taken(schedule, at(1, **change), player)
    assert player.cancelled == [2, 3]
    assert {group.checkpoint for group in part.groups} == {"c1"}
    await schedule.close()


async def test_a_rollback_of_the_run_by_several_steps_leaves_no_group_of_a_later_step() -> None:
    player, schedule = Player(), Asynchronous[Group](1)
    await steps(schedule, player, 5)
    (part,) = await taken(schedule, at(2), player)
    assert {group.checkpoint for group in part.groups} == {"c2"}
    await schedule.close()


async def test_a_group_that_fails_is_asked_again_and_the_others_are_not() -> None:
    player, schedule = Player(fail={1}), Asynchronous[Group](1)
    with pytest.raises(ConnectionError, match="group 1"):
        await taken(schedule, at(0), player)
    (part,) = await taken(schedule, at(0), player)
    assert [group.number for group in part.groups] == [0, 1]
    assert [number for number, _ in player.asked] == [0, 1, 2, 3, 1]
    await schedule.close()


async def test_closing_cancels_what_is_in_flight() -> None:
    player, schedule = Player(hold={2: asyncio.Event(), 3: asyncio.Event()}), Asynchronous[Group](1)
    await taken(schedule, at(0), player)
    await schedule.close()
    assert player.cancelled == [2, 3]
    assert player.in_flight == 0


async def test_streaming_hands_out_a_minibatch_while_another_is_sampled() -> None:
    player = Player(hold={0: asyncio.Event()})
    parts = Streaming[Group](2).parts(at(0), player.play)
    first = await anext(parts)
    assert [group.number for group in first.groups] == [1]
    player.hold[0].set()
    assert [group.number for group in (await anext(parts)).groups] == [0]
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


async def test_streaming_ends_the_other_minibatches_when_one_fails() -> None:
    player = Player(hold={1: asyncio.Event()}, fail={0})
    with pytest.raises(ConnectionError):
        await taken(Streaming(2), at(0), player)
    assert player.cancelled == [1]


async def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="2 groups of a step do not divide into 3"):
        await taken(Streaming(3), at(0), Player())
    with pytest.raises(ConfigurationError, match="minibatches is 1"):
        Streaming(1)
    with pytest.raises(ConfigurationError, match="staleness is -1"):
        Asynchronous(-1)


@pytest.mark.parametrize(
    ("staleness", "uses"),
    [(1, Uses(2, 1)), (5, Uses(2, 1)), (5, Uses(1, 3)), (11, Uses(2, 2))],
)
async def test_the_last_step_of_a_batch_is_within_the_bound_too(staleness: int, uses: Uses) -> None:
    player, schedule = Player(), Asynchronous[Group](staleness)
    groups = []
    # Two groups a minibatch: a batch is sampled at its first step, and used up by its last.
    for step in range(0, 12 * uses.steps, uses.steps):
        place = at(step, count=2 * uses.minibatches, take=2 * uses.minibatches, uses=uses)
        (found,) = await taken(schedule, place, player)
        last = step + uses.steps - 1
        ages = [last - int(group.checkpoint[1:]) for group in found.groups]
        assert max(ages) <= staleness
        assert list(found.staleness) == [age - uses.steps + 1 for age in ages]
        groups += [group.number for group in found.groups]
    assert groups == list(range(len(groups)))
    await schedule.close()


def test_a_batch_of_more_steps_than_a_schedule_takes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="staleness is 2: raise it"):
        Asynchronous[Group](2).check(Uses(2, 2))
    with pytest.raises(ConfigurationError, match="Streaming adds gradients before they are there"):
        Streaming[Group](2).check(Uses(1, 2))
    for schedule in (Synchronous[Group](), Streaming[Group](2), Asynchronous[Group](0)):
        schedule.check(Uses())
