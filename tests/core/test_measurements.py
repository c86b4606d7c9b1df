"""The number belongs to the checkpoint: what is told of one, by whom, and what goes by it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import LATER, NOW, checkpoint, commit, digest, head

from espalier.api.checkpoint import Checkpoint, CheckpointStatus
from espalier.core.checkpoints.checkpoint import decide
from espalier.core.checkpoints.commits import checkpoint_body
from espalier.core.head.head_request import passes
from espalier.core.lineage import measurements
from espalier.core.lineage.lineage import BASE_POINT, Lineage, Point
from espalier.core.lineage.lineage_index import LineageIndex, grow


def child(step: int, says: float | None, of: str = "", term: int = 1, **changes: Any) -> Checkpoint:
    """A step whose samples, of its parent unless told otherwise, had that mean reward."""
    branch = changes.get("branch", "main")
    parent = changes.pop("parent", f"m-{step - 1:06d}" if step > 1 else "")
    said = {} if says is None else {of or parent: {"reward/mean": str(says)}}
    return checkpoint(
        step=step, term=term, parent=parent, measured=said, **changes | {"branch": branch}
    )


def settled(checkpoints: list[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints with the statuses that the operator writes, however often it looks."""
    growth = LineageIndex(checkpoints)
    for _ in range(2):
        lineage: Lineage = growth.lineage(BASE_POINT)
        for one in [*lineage.by_name.values()]:
            growth.put(one.model_copy(update={"status": status(one, lineage)}))
    return dict(growth.lineage(BASE_POINT).by_name)


def status(one: Checkpoint, lineage: Lineage) -> CheckpointStatus:
    return decide(one, [], lineage, NOW)


def own(found: dict[str, Checkpoint], metric: str = "reward/mean") -> dict[int, str]:
    return {c.spec.step: v for c in found.values() if (v := measurements.value(c, metric))}


def test_what_was_sampled_for_a_step_is_the_number_of_the_checkpoint_that_was_sampled() -> None:
    first, second, third = child(1, None), child(2, 0.25), child(3, 0.75)
    found = settled([first, second, third])
    # Of the newest nothing is known: it was not sampled yet.
    assert own(found) == {1: "0.25", 2: "0.75"}
    gate = head(gate={"metric": "reward/mean", "min": "0.5"}).spec
    # By the number of its parent the third would pass and the second would not.
    assert {c.spec.step: passes(gate, c) for c in found.values()} == {1: False, 2: True, 3: False}


def test_a_commit_brings_the_figures_of_the_step_and_of_what_was_sampled_under_two_names() -> None:
    told = commit(2, parent="m-000001").model_copy(
        update={"measured": {"m-000001": {"reward/mean": 0.25}}}
    )
    body = checkpoint_body(told, "default", Point("m-000001", 1, digest("m-000001")))
    made = Checkpoint.model_validate(body)
    found = settled([child(1, None), made])
    assert own(found) == {1: "0.25"}
    assert [(m.name, m.value) for m in found["m-000002"].status.metrics] == [
        ("rollout/reward/mean", "0.5")
    ]


def test_a_status_that_says_it_already_is_not_written_anew() -> None:
    found = settled([child(1, None), child(2, 0.25)])
    lineage = grow(found.values(), BASE_POINT)
    for one in found.values():
        assert decide(one, [], lineage, LATER) == one.status


def test_the_first_word_counts_and_a_later_branch_does_not_change_it() -> None:
    first, second = child(1, None), child(2, 0.25)
    again = child(2, 0.9, branch="b2", parent="m-000001", term=2)
    assert own(settled([first, again, second]))[1] == "0.25"


def test_the_number_stays_when_the_step_that_brought_it_is_deleted() -> None:
    found = settled([child(1, None), child(2, 0.25), child(3, 0.5)])
    del found["m-000002"]
    assert own(settled([*found.values()])) == {1: "0.25"}


@pytest.mark.parametrize(
    "teller",
    [
        child(2, 1.0, run="another"),
        child(2, 1.0, of="m-000003"),
        child(2, 1.0, of="m-000002"),
        checkpoint(step=2, parent="m-000001", measured={"m-000001": {"loss/sum": "1"}}),
        checkpoint(step=2, parent="m-000001", measured={"m-000001": {"reward/mean": "much"}}),
        checkpoint(step=2, parent="m-000001", measured={"m-000001": {"reward/mean": "nan"}}),
        checkpoint(step=2, parent="m-000001", measured={"m-000001": "1"}),
        checkpoint(step=2, parent="m-000001", annotations={"espalier.dev/measured": "[" * 100_000}),
        checkpoint(step=2, parent="m-000001", annotations={"espalier.dev/measured": "[1"}),
        checkpoint(step=2, parent="m-000001", name="m-000007", measured={"m-000001": {}}),
    ],
    ids=[
        "other tasks",
        "one that comes later",
        "itself",
        "a step's metric",
        "no number",
        "no finite number",
        "no figures",
        "too deep",
        "no JSON",
        "no commit",
    ],
)
def test_nobody_else_can_say_what_a_checkpoint_is_worth(teller: Checkpoint) -> None:
    found = settled([child(1, None), teller, child(3, None)])
    assert own(found) == {}


def test_figures_of_an_evaluation_stand_beside_the_rewards() -> None:
    said = {"m-000001": {"eval/reward/mean": "0.5", "reward/mean": "0.25"}}
    found = settled([child(1, None), checkpoint(step=2, parent="m-000001", measured=said)])
    assert own(found, "eval/reward/mean") == {1: "0.5"}
    assert own(found) == {1: "0.25"}


def test_the_rewards_of_steps_from_before_are_those_of_their_parents() -> None:
    """Before the two had names of their own, a step's rewards were in its own checkpoint."""

    def old(step: int, reward: str) -> Checkpoint:
        one = checkpoint(step=step, parent=f"m-{step - 1:06d}" if step > 1 else "", reward=reward)
        kept = one.metadata.annotations | {"espalier.dev/metrics": f'{{"reward/mean": "{reward}"}}'}
        del kept["espalier.dev/measured"]
        meta = one.model_dump()["metadata"] | {"annotations": kept}
        return Checkpoint.model_validate({**one.model_dump(), "metadata": meta})

    found = settled([old(1, "0.1"), old(2, "0.2"), old(3, "0.3")])
    assert own(found) == {1: "0.2", 2: "0.3"}
    steps = {c.spec.step: [(m.name, m.value) for m in c.status.metrics] for c in found.values()}
    assert steps[3] == [("rollout/reward/mean", "0.3")]


def test_an_evaluation_is_a_figure_of_its_checkpoint_and_the_latest_counts() -> None:
    def evaluated(mean: str) -> Checkpoint:
        result = {
            "name": "held-out",
            "tasks": 4,
            "metrics": [{"name": "eval/held-out/mean_reward", "value": mean}],
        }
        one = child(1, None)
        found = CheckpointStatus.model_validate({"evaluations": [result]})
        return one.model_copy(update={"status": found})

    first = settled([evaluated("0.25")])["m-000001"]
    assert measurements.value(first, "eval/held-out/mean_reward") == "0.25"
    gate = head(gate={"metric": "eval/held-out/mean_reward", "min": "0.5"}).spec
    assert not passes(gate, first)
    again = evaluated("0.75")
    again = again.model_copy(
        update={"status": first.status.model_copy(update={"evaluations": again.status.evaluations})}
    )
    second = settled([again])["m-000001"]
    assert measurements.value(second, "eval/held-out/mean_reward") == "0.75"
    assert passes(gate, second)
