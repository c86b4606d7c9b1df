"""A batch of several optimizer steps: how it is cut, what is left of it, what its steps report."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import ValidationError

from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.gradients import DatumTensors
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.loop.minibatches import Uses, after, anchored, cut, metrics, part, seen_again


def group(number: int, size: int = 2) -> list[TrajectoryPayload]:
    sample = TrajectorySample(
        prompt_token_ids=[1], output_token_ids=[2, 3], output_logprobs=[-1.0, -2.0], checkpoint="c"
    )
    return [
        TrajectoryPayload(samples=[sample], reward=float(member), group_id=str(number))
        for member in range(size)
    ]


def groups(count: int) -> list[list[TrajectoryPayload]]:
    return [group(number) for number in range(count)]


def names(inputs: Sequence[TrajectoryPayload]) -> list[str | None]:
    """The groups of some inputs, in order."""
    return list(dict.fromkeys(payload.group_id for payload in inputs))


def walk(left: BatchLeft | None) -> list[list[str | None]]:
    """The groups of every step that is left, each as the trainer would give it back."""
    found = []
    while left is not None:
        found.append(names(part(left)))
        left = after(left, taken=True)
        left = None if left is None else BatchLeft.model_validate_json(left.model_dump_json())
    return found


def test_every_epoch_trains_every_group_once_and_a_group_stays_whole() -> None:
    found = walk(cut(groups(5), Uses(2, 3), step=0))
    assert found[:2] == [["0", "1"], ["2", "3", "4"]]
    for epoch in (found[:2], found[2:4], found[4:]):
        assert [len(minibatch) for minibatch in epoch] == [2, 3]
        assert sorted(name or "" for minibatch in epoch for name in minibatch) == [*"01234"]
    assert walk(cut(groups(4), Uses(4, 1), step=0)) == [["0"], ["1"], ["2"], ["3"]]
    # Where groups lack, minibatches do, and none is empty.
    assert walk(cut(groups(1), Uses(3, 2), step=0)) == [["0"], ["0"]]
    # Of a run that has two steps left.
    assert walk(cut(groups(4), Uses(4, 1), step=0, most=2)) == [["0", "1"], ["2", "3"]]


def test_every_epoch_deals_the_groups_out_anew_by_the_seed_and_the_step_alone() -> None:
    def dealt(seed: int, step: int) -> list[list[str | None]]:
        return walk(cut(groups(8), Uses(4, 4, seed), step))

    found = dealt(7, 12)
    epochs = [found[start : start + 4] for start in range(0, 16, 4)]
    assert len({str(epoch) for epoch in epochs}) == 4
    assert dealt(7, 12) == found
    assert dealt(8, 12)[4:] != found[4:] != dealt(7, 28)[4:]
    assert dealt(8, 12)[:4] == found[:4]


def test_what_no_step_needs_any_more_is_not_kept() -> None:
    left = cut(groups(2), Uses(2, 2), step=0)
    sizes = []
    following: BatchLeft | None = left
    while following is not None:
        sizes.append([len(one) for one in following.parts])
        following = after(following, taken=True)
    assert sizes == [[2, 2], [2, 2], [2, 2], [0, 2]]


def test_a_batch_that_lacks_what_is_left_of_it_is_refused() -> None:
    left = cut(groups(2), Uses(2, 1), step=0)
    with pytest.raises(ValidationError, match="nothing is left"):
        BatchLeft(parts=left.parts, epochs=1, next=2)
    with pytest.raises(ValidationError, match="an empty one that a step is yet to take"):
        BatchLeft(parts=[[], left.parts[1]], epochs=1, next=0)


def test_only_what_is_seen_again_after_a_step_needs_the_trainers_log_probs() -> None:
    assert seen_again(cut(groups(2), Uses(2, 1), step=0)) == [1]
    assert seen_again(cut(groups(2), Uses(2, 2), step=0)) == [0, 1]
    assert seen_again(cut(groups(2), Uses(1, 1), step=0)) == []
    left = cut(groups(2), Uses(2, 1), step=0)
    data = [
        DatumTensors(
            reward=0.0,
            traj_idx=index,
            logprobs=[-0.1 * index, -0.2],
            sampling_logprobs=[-1.0, -2.0],
            mask=[1.0, 1.0],
        )
        for index in range(2)
    ]
    first, second = anchored(left, [1], data).parts
    assert [payload.samples[0].anchor_logprobs for payload in first] == [None, None]
    assert [payload.samples[0].anchor_logprobs for payload in second] == [[0.0, -0.2], [-0.1, -0.2]]


def test_samples_are_counted_once_and_their_figures_are_of_every_step() -> None:
    left = cut(groups(2), Uses(2, 2), step=0)
    # Their rewards are figures of a checkpoint once, by the client's own.
    assert {p.samples[0].checkpoint for one in left.parts for p in one} == {None}
    sampled = {
        "rollout/reward/mean": 0.5,
        "completion/tokens_total": 8.0,
        "async/staleness_steps/max": 1.0,
        "tracking/failed": 1.0,
        "time/step_seconds": 9.0,
    }
    first = metrics(left, sampled)
    place = {"batch/minibatch": 1.0, "batch/epoch": 1.0, "batch/steps_before": 0.0}
    assert first == sampled | place
    following = after(left, taken=True)
    assert following is not None
    # One without a gradient is left out: the policy has not moved by it.
    following = after(following.model_copy(update={"metrics": first}), taken=False)
    assert following is not None
    assert metrics(following, {"tracking/failed": 2.0, "time/step_seconds": 3.0}) == {
        "rollout/reward/mean": 0.5,
        "completion/tokens_total": 0.0,
        "async/staleness_steps/max": 2.0,
        "tracking/failed": 2.0,
        "time/step_seconds": 3.0,
        "batch/minibatch": 1.0,
        "batch/epoch": 2.0,
        "batch/steps_before": 1.0,
    }
