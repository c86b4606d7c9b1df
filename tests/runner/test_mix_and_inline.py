"""Weighted mixes of datasets, tasks in the run itself, and bad ones that are refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runner.scoring import reward

from espalier.api.run.taskset import Taskset
from espalier.environments.errors import UserError
from espalier.runner.jsonl import MOST_BYTES
from espalier.runner.mixed_tasks import order, shares
from espalier.runner.open_taskset import open_tasks
from espalier.runner.scoring.scorer import Scorer, evaluates
from espalier.runner.task_protocol import Tasks
from espalier.runner.taskset_digest import taskset_used

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def mixed(*parts: tuple[str, int], size: int = 10, seed: int = 1) -> Taskset:
    datasets = [
        {"name": name, "weightPercent": weight, **({"config": SUMS} if name == "chain_sum" else {})}
        for name, weight in parts
    ]
    spec = {"seed": seed, "size": size, "reasoningGym": {"datasets": datasets}}
    return Taskset.model_validate(spec)


def mix(*parts: tuple[str, int], size: int = 10, seed: int = 1) -> Tasks:
    return open_tasks(mixed(*parts, size=size, seed=seed))


def inline(*tasks: dict[str, Any], **fields: Any) -> Tasks:
    spec = {"seed": 1, "inline": list(tasks), "answerExtraction": "Whole", **fields}
    return open_tasks(Taskset.model_validate(spec))


def refusal(open_it: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_it()
    assert caught.value.problem.reason == "TasksetInvalid"
    assert caught.value.problem.remedy
    return caught.value.problem.detail


def test_a_mix_has_exact_shares_in_an_order_that_the_seed_draws() -> None:
    def names(tasks: Tasks) -> list[str]:
        return [tasks.task(index).id for index in range(tasks.size)]

    first = names(mix(("chain_sum", 70), ("leg_counting", 30)))
    assert Counter(name.split("/")[1] for name in first) == {"chain_sum": 7, "leg_counting": 3}
    assert len(set(first)) == 10
    assert first == names(mix(("chain_sum", 70), ("leg_counting", 30)))
    assert first != names(mix(("chain_sum", 70), ("leg_counting", 30), seed=2))


async def test_each_task_of_a_mix_is_scored_by_its_own_dataset() -> None:
    tasks = mix(("chain_sum", 50), ("leg_counting", 50), size=4)
    spec = Taskset.model_validate({"seed": 1, "reasoningGym": {"dataset": "chain_sum"}})
    async with Scorer(spec, tasks) as scorer:
        await scorer.ready()
        for index in range(4):
            asked = tasks.task(index).messages[0].content
            right = sum_in(asked) if "chain_sum" in tasks.task(index).id else None
            if right is not None:
                assert (await scorer.score(index, f"<answer>{right}</answer>")).reward == 1
            assert (await scorer.score(index, "no answer")).reward == 0


def sum_in(asked: str) -> int:
    left, sign, right, _ = asked.rsplit(":", 1)[1].split()
    return int(left) + int(right) if sign == "+" else int(left) - int(right)


def test_a_mix_with_a_dataset_that_evaluates_is_scored_as_one() -> None:
    assert evaluates(mix(("chain_sum", 50), ("countdown", 50)).scorer)
    assert not evaluates(mix(("chain_sum", 50), ("leg_counting", 50)).scorer)


WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=8)


@given(WEIGHTS.filter(lambda weights: sum(weights) <= 100), st.integers(1, 2000))
def test_shares_are_within_one_task_of_their_weight(weights: list[int], size: int) -> None:
    weights = [*weights, 100 - sum(weights)]
    found = shares(weights, size)
    assert sum(found) == size
    assert all(
        abs(got - weight * size / 100) < 1 for got, weight in zip(found, weights, strict=True)
    )
    places = order(found, 7)
    assert len(set(places)) == size


@pytest.mark.parametrize(
    ("parts", "size", "detail"),
    [
        ([("chain_sum", 50), ("leg_counting", 40)], 10, "weightPercent sums to 90"),
        ([("chain_sum", 50), ("chain_sum", 50)], 10, "chain_sum is named twice"),
        ([("chain_sum", 99), ("leg_counting", 1)], 10, "1 % of size 10 is no task of leg_counting"),
        ([("chain_sum", 50), ("leg_count", 50)], 10, "datasets[1].name: reasoning-gym has no"),
        ([("composite", 100)], 10, "datasets[0].name: composite cannot be used"),
    ],
)
def test_a_wrong_mix_is_refused_by_name(
    parts: list[tuple[str, int]], size: int, detail: str
) -> None:
    assert detail in refusal(lambda: mix(*parts, size=size))


def test_inline_tasks_are_asked_and_scored_as_lines_are() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}]
    tasks = inline(
        {"id": "two", "prompt": "1+1=", "answer": "2"},
        {"id": "four", "messages": chat, "answer": "4"},
    )
    by_id = {tasks.task(index).id: index for index in range(tasks.size)}
    assert set(by_id) == {"inline/two", "inline/four"}
    assert [m.wire() for m in tasks.task(by_id["inline/four"]).messages] == chat
    assert reward(tasks, by_id["inline/two"], "2") == 1
    assert reward(tasks, by_id["inline/four"], "2") == 0


def test_a_wrong_inline_task_is_named() -> None:
    one = {"id": "a", "prompt": "1+1=", "answer": "2"}
    assert "two tasks have the id inline/a" in refusal(lambda: inline(one, one))
    both = {**one, "messages": [{"role": "user", "content": "?"}]}
    assert "taskset.inline a, prompt: set exactly one" in refusal(lambda: inline(both))
    numbers = refusal(lambda: inline({**one, "answer": "two"}, answerExtraction="LastNumber"))
    assert "taskset.inline a, answer: 'two' is not a number" in numbers


def file(directory: Path, *rows: dict[str, Any]) -> Tasks:
    (directory / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = Taskset.model_validate({"seed": 1, "configMap": {"name": "digits"}})
    return open_tasks(spec, directory)


def test_a_prompt_of_100_kb_and_two_tasks_of_one_id_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "?", "answer": "2"}
    long = refusal(lambda: file(tmp_path, row, {**row, "prompt": "a" * 100_000}))
    assert f"line 2: a text of 100000 bytes, and {MOST_BYTES} are the most" in long
    twice = refusal(lambda: file(tmp_path, {**row, "id": "a"}, {**row, "id": "a"}))
    assert "configmap/digits/tasks.jsonl: two tasks have the id a" in twice
    assert file(tmp_path, row, row, {**row, "prompt": "a" * MOST_BYTES}).size == 3


def test_the_digest_of_generated_tasks_is_that_of_their_generator() -> None:
    def digest(*parts: tuple[str, int], **fields: int) -> str:
        spec = mixed(*parts, **fields)
        return taskset_used(spec, open_tasks(spec)).digest

    found = [
        digest(("chain_sum", 70), ("leg_counting", 30)),
        digest(("chain_sum", 60), ("leg_counting", 40)),
        digest(("chain_sum", 70), ("leg_counting", 30), seed=2),
        digest(("chain_sum", 70), ("leg_counting", 30), size=20),
        digest(("chain_sum", 100)),
    ]
    assert len(set(found)) == 5
