"""Two runs were asked the same if the digests of their tasks are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.api.run.taskset import Taskset
from espalier.runner.open_taskset import open_tasks
from espalier.runner.taskset_digest import taskset_used

ROWS = [{"prompt": f"d={digit}", "answer": str(digit)} for digit in range(4)]


def of_file(tmp_path: Path, rows: list[dict[str, str]], **changes: Any) -> str:
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"seed": 1, "configMap": {"name": "digits"}, **changes}
    spec = Taskset.model_validate(given)
    used = taskset_used(spec, open_tasks(spec, tmp_path))
    assert (used.size, used.seed) == (min(len(rows), spec.size), spec.seed)
    return used.digest


def test_the_same_tasks_have_the_same_digest(tmp_path: Path) -> None:
    assert of_file(tmp_path, ROWS) == of_file(tmp_path, ROWS, configMap={"name": "copy"})


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        ([*ROWS[:3], {"prompt": "d=3", "answer": "4"}], {}),
        ([*ROWS[:3], {"prompt": "d: 3", "answer": "3"}], {}),
        (ROWS, {"seed": 2}),
        (ROWS, {"size": 3}),
        (ROWS, {"systemPrompt": "Be brief."}),
    ],
    ids=["answer", "prompt", "order", "size", "system prompt"],
)
def test_other_tasks_have_another(
    tmp_path: Path, rows: list[dict[str, str]], changes: dict[str, Any]
) -> None:
    assert of_file(tmp_path, ROWS) != of_file(tmp_path, rows, **changes)


def test_generated_tasks_have_the_digest_of_what_generates_them() -> None:
    pytest.importorskip("reasoning_gym")

    def of(**changes: Any) -> str:
        given = {"seed": 1, "size": 8, "reasoningGym": {"dataset": "chain_sum"}, **changes}
        spec = Taskset.model_validate(given)
        return taskset_used(spec, open_tasks(spec)).digest

    assert of() == of(scoreTimeoutSeconds=9)
    others = [of(seed=2), of(size=9), of(promptTemplate="{question}!"), of()]
    configured = of(reasoningGym={"dataset": "chain_sum", "config": {"min_terms": 3}})
    assert len({*others, configured}) == 5
