"""What is said of a user's module without running it."""

from __future__ import annotations

import pytest

from espalier.rewards.module import ModuleError, check

GOOD = "def reward(prompt, completion, answer, task):\n    return 1.0\n"


@pytest.mark.parametrize(
    "source",
    [
        GOOD,
        "def reward(*given): return 1",
        "def reward(prompt, completion, answer, task, extra=0): return 1",
        "import json\nx = 1 / 0\n" + GOOD,
    ],
)
def test_a_function_that_takes_the_four_arguments_will_do(source: str) -> None:
    check(source, "reward")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def reward(:", "is no Python: invalid syntax"),
        ("x\0y", "is no Python"),
        ("(" * 100_000, "is no Python"),
        ("reward = 1", "has no function reward at its top level"),
        ("def score(a, b, c, d): pass", "has no function reward"),
        ("async def reward(a, b, c, d): pass", "write def reward"),
        ("def reward(completion): pass", "must be def reward(prompt, completion, answer, task)"),
        ("def reward(a, b, c, d, e): pass", "must be def reward"),
        ("def reward(a, b, c, d, *, e): pass", "must be def reward"),
    ],
)
def test_another_module_is_refused_with_what_it_lacks(source: str, why: str) -> None:
    with pytest.raises(ModuleError) as refused:
        check(source, "reward")
    assert why in str(refused.value)


def test_nothing_of_it_runs(tmp_path: object) -> None:
    check(f"raise SystemExit\nopen({str(tmp_path) + '/x'!r}, 'w')\n{GOOD}", "reward")
