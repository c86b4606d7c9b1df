"""Rollouts in groups: time, failures, phases, what is trained on and what is counted out."""

from __future__ import annotations

import asyncio
import copy
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from espalier import (
    AdvantageWarning,
    Call,
    Completion,
    ConfigurationError,
    Job,
    Rollout,
    Sampling,
    Session,
    UntrainableError,
)
from espalier.loop.batch import Batch
from espalier.loop.fit_figures import passed
from espalier.loop.precomputed import missing_fraction, trajectories


@dataclass(frozen=True)
class Question:
    id: str


class Clock:
    """The running loop's time, which a test can let pass at once."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._passed = 0.0
        real = loop.time
        loop.time = lambda: real() + self._passed  # type: ignore[method-assign]

    async def hang(self) -> None:
        """Takes ten minutes."""
        self._passed += 600.0
        await asyncio.Event().wait()


class Echo:
    """Samples one token; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.chats: list[list[tuple[str, str]]] = []
        self.finish_reason = "stop"
        self.hangs = False

    def sample(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> Call[list[Completion]]:
        self.asked.append({"max_tokens": max_tokens, "temperature": temperature, **(extra or {})})
        self.chats.append([(message["role"], message["content"]) for message in messages])
        prompt = tuple(range(3 * len(messages)))
        call: Call[list[Completion]] = Call("")
        if not self.hangs:
            turn = Completion("x", prompt, (7, 8), (-0.1, -0.2), self.finish_reason)
            call._future.set_result([turn])
        return call


async def one_turn(task: Question, session: Session) -> float:
    await session.sample([{"role": "user", "content": task.id}])
    return float(session.rollout.rollout_idx)


TASKS = [Question("a:b"), Question("c")]


async def test_a_conversation_goes_on_from_the_tokens_that_were_sampled() -> None:
    async def talk(task: Question, session: Session) -> float:
        await session.say({"role": "system", "content": "be brief"}, "a?")
        await session.sample([{"role": "user", "content": "an aside"}])
        await session.say("b?", max_tokens=3)
        await session.say({"role": "tool", "content": "4"})
        return 1.0

    sampler = Echo()
    batch = await Job(sampler, talk).run(TASKS[:1])
    assert batch.groups[0][0].error == ""
    opening = [("system", "be brief"), ("user", "a?")]
    second = [*opening, ("assistant", "x"), ("user", "b?")]
    third = [*second, ("assistant", "x"), ("tool", "4")]
    aside = [("user", "an aside")]
    assert sampler.chats == [opening, aside, second, third]
    sent = [
        (asked.get("prompt_token_ids"), asked.get("continuation_from")) for asked in sampler.asked
    ]
    assert sent == [
        (None, None),
        (None, None),
        ([*range(6), 7, 8], 3),
        ([*range(12), 7, 8], 5),
    ]
    assert len(batch.groups[0][0].turns) == 4


async def test_messages_that_a_rollout_was_given_stay_as_they_are() -> None:
    given = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a?"}]
    before = copy.deepcopy(given)

    async def talk(task: Question, session: Session) -> float:
        await session.sample(given)
        await session.say(*given)
        await session.say("b?")
        return 1.0

    (rollout,) = (await Job(Echo(), talk).run(TASKS[:1])).groups[0]
    assert rollout.error == ""
    assert given == before


async def test_a_conversation_needs_something_to_answer() -> None:
    async def silent(task: Question, session: Session) -> float:
        await session.say()
        return 1.0

    batch = await Job(Echo(), silent).run(TASKS[:1])
    assert "say needs a message" in batch.groups[0][0].error


async def test_groups_carry_ids_and_tasks_keep_their_order() -> None:
    batch = await Job(Echo(), one_turn, group=3).run(TASKS)
    assert [[(r.task_id, r.rollout_idx) for r in group] for group in batch.groups] == [
        [("a:b", 0), ("a:b", 1), ("a:b", 2)],
        [("c", 0), ("c", 1), ("c", 2)],
    ]
    payloads = batch.trajectories()
    ids = [payload.group_id for payload in payloads]
    assert len(set(ids)) == 2
    assert ids[0] == ids[1] == ids[2] != ids[3]
    again = await Job(Echo(), one_turn, group=3).run(TASKS)
    assert not {r.group_id for g in again.groups for r in g} & set(ids)


async def test_a_colon_in_the_id_of_a_task_separates_nothing() -> None:
    async def odd(task: Question, session: Session) -> float:
        await one_turn(task, session)
        return float(task.id == "a:1")

    batch = await Job(Echo(), odd, group=2).run([Question("a:1"), Question("a"), Question("a:")])
    records = [rollout.record(trained=True) for rollout in batch.rollouts]
    assert [(r["task"], r["attempt"]) for r in records] == [
        *[("a:1", 0), ("a:1", 1), ("a", 0), ("a", 1), ("a:", 0), ("a:", 1)],
    ]
    assert passed(batch, [1])["pass@1"] == pytest.approx(1 / 3)


async def test_a_rollout_out_of_time_names_its_phase_and_takes_its_group_along() -> None:
    clock, others = Clock(), itertools.count(1)
    done = asyncio.Event()

    async def slow(task: Question, session: Session) -> float:
        reward = await one_turn(task, session)
        if task.id == "c" and session.rollout.rollout_idx == 1:
            with session.phase("grading"):
                await done.wait()
                await clock.hang()
        if next(others) == 3:
            done.set()
        return reward

    batch = await Job(Echo(), slow, group=2, rollout_timeout=60).run(TASKS)
    late = batch.groups[1][1]
    assert (late.status, late.stop_reason) == ("error", "timeout")
    assert late.error == "rollout timed out after 60 s during grading"
    assert late.reward is None
    assert {p.group_id for p in batch.trajectories()} == {batch.groups[0][0].group_id}
    seen = batch.metrics()
    assert (seen["rollout/failed"], seen["rollout/timed_out"]) == (1.0, 1.0)
    assert (seen["group/excluded"], seen["group/dropped"]) == (1.0, 0.0)
    with pytest.raises(UntrainableError, match=r"rollout 1 of task c: .*grading"):
        late.payload()


async def test_a_sampler_that_hangs_is_named_as_the_phase() -> None:
    sampler = Echo()
    sampler.hangs = True
    batch = await Job(sampler, one_turn, rollout_timeout=0.02).run(TASKS[:1])
    assert batch.groups[0][0].error == "rollout timed out after 0.02 s during sampling"


async def test_a_timeout_of_the_rollouts_own_is_a_failure_of_its_own() -> None:
    async def impatient(task: Question, session: Session) -> float:
        with session.phase("asking the tool"):
            raise TimeoutError("tool is slow")
        return 0.0

    batch = await Job(Echo(), impatient, rollout_timeout=5.0).run(TASKS[:1])
    failed = batch.groups[0][0]
    assert failed.error == "TimeoutError during asking the tool: tool is slow"
    assert failed.stop_reason == ""


async def test_a_failed_rollout_is_returned_and_the_others_are_kept() -> None:
    async def broken(task: Question, session: Session) -> float:
        reward = await one_turn(task, session)
        if task.id == "c":
            raise ValueError("no such tool")
        return reward

    batch = await Job(Echo(), broken, group=2).run(TASKS)
    assert [r.error for r in batch.groups[1]] == ["ValueError during starting: no such tool"] * 2
    assert len(batch.trajectories()) == 2


async def test_groups_of_equal_rewards_are_dropped_and_counted() -> None:
    async def constant(task: Question, session: Session) -> float:
        await one_turn(task, session)
        return 0.5

    batch = await Job(Echo(), constant, group=2).run(TASKS)
    assert batch.trajectories() == []
    assert len(batch.trajectories(keep_constant=True)) == 4
    assert batch.metrics()["group/dropped"] == 2.0
    assert batch.metrics()["rollout/reward/mean"] == 0.5


async def test_metadata_and_stop_reason_stay_with_the_rollout() -> None:
    async def play(task: Question, session: Session) -> float:
        session.metadata["moves"] = 3
        await one_turn(task, session)
        session.stop("max_steps")
        return 1.0

    (rollout,) = (await Job(Echo(), play).run(TASKS[:1])).groups[0]
    assert (rollout.metadata, rollout.stop_reason) == ({"moves": 3}, "max_steps")
    assert rollout.is_truncated
    done = (await Job(Echo(), one_turn).run(TASKS[:1])).groups[0][0]
    assert (done.stop_reason, done.is_truncated) == ("done", False)


async def test_a_cut_completion_is_a_reason_to_stop() -> None:
    sampler = Echo()
    sampler.finish_reason = "length"
    (rollout,) = (await Job(sampler, one_turn).run(TASKS[:1])).groups[0]
    assert rollout.stop_reason == "length"
    assert rollout.is_truncated


async def test_every_turn_becomes_a_sample_under_one_reward() -> None:
    async def turns(task: Question, session: Session) -> float:
        for length in (1, 2, 3):
            await session.sample([{"role": "user", "content": "x"}] * length)
        return 1.0

    (rollout,) = (await Job(Echo(), turns).run(TASKS[:1])).groups[0]
    payload = rollout.payload()
    assert [len(sample.prompt_token_ids or []) for sample in payload.samples] == [3, 6, 9]
    assert payload.reward == 1.0


@pytest.mark.parametrize(("limit", "expected"), [(None, [6, 6]), (8, [6, 3]), (6, [6, 1])])
async def test_tokens_are_clamped_to_what_the_models_length_leaves(
    limit: int | None, expected: list[int]
) -> None:
    sampler = Echo()

    async def turns(task: Question, session: Session) -> float:
        await one_turn(task, session)
        return await one_turn(task, session)

    job = Job(sampler, turns, sampling=Sampling(max_tokens=6), max_model_length=limit)
    await job.run(TASKS[:1])
    assert [asked["max_tokens"] for asked in sampler.asked] == expected


async def test_no_room_ends_the_rollout_and_never_asks_for_no_tokens() -> None:
    sampler = Echo()

    async def turns(task: Question, session: Session) -> float:
        await one_turn(task, session)
        return await one_turn(task, session)

    batch = await Job(sampler, turns, max_model_length=5).run(TASKS[:1])
    (rollout,) = batch.groups[0]
    assert rollout.stop_reason == "length"
    assert "has 5 tokens and max_model_length is 5" in rollout.error
    assert len(sampler.asked) == 1


async def test_a_calls_parameters_go_before_the_phases_and_do_not_leak() -> None:
    sampler = Echo()

    async def override(task: Question, session: Session) -> float:
        hot = task.id == "c"
        await session.sample([], temperature=0.3 if hot else None, stop=("END",) if hot else None)
        return 1.0

    await Job(sampler, override, sampling=Sampling(max_tokens=9, temperature=0.9)).run(TASKS)
    keys = {asked.pop("prompt_cache_key") for asked in sampler.asked}
    assert len(keys) == len(TASKS)
    assert sampler.asked == [
        {"max_tokens": 9, "temperature": 0.9},
        {"max_tokens": 9, "temperature": 0.3, "stop": ["END"]},
    ]
    with pytest.raises(ConfigurationError, match="max_new_tokens is no sampling parameter"):
        Sampling().but(max_new_tokens=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 0}, "group is 0"),
        ({"max_concurrent": 0}, "max_concurrent is 0"),
        ({"rollout_timeout": 0.0}, "rollout_timeout is 0.0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Job(Echo(), one_turn, **options)


def played(advantages: dict[int, Any], reward: float = 1.0) -> Rollout:
    turns = [Completion("x", (1,), (7, 8), (-0.1, -0.2), "stop") for _ in range(2)]
    return Rollout("t", 0, "g", turns=turns, reward=reward, advantages=advantages)


def test_precomputed_advantages_are_used_token_by_token() -> None:
    (payload,) = trajectories([[played({0: [0.1, 0.2], 1: (0.3, -0.4)})]], "Precomputed")
    assert [sample.advantages for sample in payload.samples] == [[0.1, 0.2], [0.3, -0.4]]


def test_missing_precomputed_advantages_are_zeros_with_one_warning() -> None:
    group = [played({0: [0.1, 0.2]}), played({})]
    with pytest.warns(AdvantageWarning, match=r"3 of 4 turns .* zeros") as seen:
        payloads = trajectories([group], "Precomputed")
    assert len(seen) == 1
    assert payloads[1].samples[0].advantages == [0.0, 0.0]
    assert missing_fraction([group]) == 0.75


def test_advantages_of_another_length_are_zeros_and_both_lengths_named() -> None:
    with pytest.warns(AdvantageWarning, match="turn 1 has 3 advantages for 2 output tokens"):
        (payload,) = trajectories([[played({0: [1, 2], 1: [1, 2, 3]})]], "Precomputed")
    assert payload.samples[1].advantages == [0.0, 0.0]


@pytest.mark.parametrize("scalar", [0.5, 1, "0.5"])
def test_a_scalar_advantage_is_an_error(scalar: Any) -> None:
    with pytest.raises(UntrainableError, match="one value per output token"):
        trajectories([[played({0: scalar})]], "Precomputed")


def test_advantages_that_nobody_asked_for_are_overwritten_with_one_warning() -> None:
    with pytest.warns(AdvantageWarning, match="overwritten") as seen:
        payloads = trajectories([[played({0: [1.0, 1.0]}), played({0: [2.0, 2.0]})]], "Estimated")
    assert len(seen) == 1
    assert all(sample.advantages is None for p in payloads for sample in p.samples)


def test_nothing_warns_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Batch([[played({}), played({}, 0.0)]]).trajectories()) == 2
