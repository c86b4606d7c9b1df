"""Declared rewards in their real worker: what they give, and what becomes of bad ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runner.around import surroundings
from tests.runner.standin import spec

from espalier.api.trainingrun import TrainingRunSpec
from espalier.client import Completion
from espalier.rewards import RewardFailedError, Rewards, Scored
from espalier.rewards.module import ModuleError
from espalier.runner.open_rewards import open_rewards
from espalier.runner.open_taskset import open_tasks
from espalier.runner.run_end import UserError
from espalier.runner.scoring import seccomp
from espalier.runner.user_modules import mounted_modules

pytestmark = pytest.mark.skipif(
    not seccomp.supported(), reason="this kernel has no seccomp filters"
)

ROW = {"id": "sum", "prompt": "1+1?", "answer": "2"}
Score = Callable[..., Awaitable[list[Scored]]]


def written(text: str, tokens: int = 3, finish: str = "stop") -> Completion:
    return Completion(text, (1,), tuple(range(tokens)), (-0.5,) * tokens, finish)


def run(rewards: list[dict[str, Any]] | None, **changes: Any) -> TrainingRunSpec:
    taskset = {"seed": 1, "size": 8, "configMap": {"name": "tasks"}}
    taskset |= changes.pop("taskset", {})
    found = spec(**{"taskset": taskset, "sampling": {"maxTokens": 10}, **changes})
    if rewards is not None:
        found["rewards"] = rewards
    return TrainingRunSpec.model_validate(found)


@pytest.fixture
async def scored(tmp_path: Path) -> AsyncIterator[Score]:
    """Scores a group of the one task; closes what it opened."""
    opened: list[Rewards] = []

    async def score(
        declared: TrainingRunSpec, *completions: Completion | str, module: str = ""
    ) -> list[Scored]:
        (tmp_path / "tasks.jsonl").write_text(json.dumps(ROW))
        tasks = open_tasks(declared.taskset, tmp_path)
        around = surroundings(modules={"rewards/reward.py": module})
        opened.append(open_rewards(declared, tasks, around))
        await opened[-1].ready()
        group = [one if isinstance(one, Completion) else written(one) for one in completions]
        return await opened[-1].score(0, tasks.task(0), group)

    yield score
    for rewards in opened:
        await rewards.close()


def python(name: str = "style", **more: Any) -> dict[str, Any]:
    fields = {key: more.pop(key) for key in ("minimum", "maximum", "function") if key in more}
    return {"name": name, "python": {"configMapRef": {"name": "rewards"}, **fields}, **more}


def module(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return f"def reward(prompt, completion, answer, task):\n{lines}\n"


async def test_a_run_without_rewards_has_the_one_of_its_taskset(scored: Score) -> None:
    right, wrong = await scored(run(None), "<answer>2</answer>", "<answer>3</answer>")
    assert right == Scored(1.0, {"taskset": 1.0})
    assert wrong == Scored(0.0, {"taskset": 0.0})


async def test_each_kind_of_text_counts_by_its_weight(scored: Score) -> None:
    declared = run(
        [
            {"name": "exact", "exact": {}},
            {"name": "near", "weight": "0.5", "numeric": {"tolerance": "0.1"}},
            {"name": "boxed", "weight": "0.25", "boxed": {}},
            {"name": "shout", "weight": "-2", "regex": {"pattern": "!{3}"}},
            {"name": "own", "weight": "0", "environment": {}},
        ]
    )
    (one,) = await scored(declared, r"!!! \boxed{2} <answer>2.05</answer>")
    assert one.parts == {"exact": 0, "near": 1, "boxed": 1, "shout": 1, "own": 0}
    assert one.reward == 0.5 + 0.25 - 2
    assert one.advantage is None


async def test_a_module_gets_prompt_completion_answer_and_task(scored: Score) -> None:
    look = "assert (prompt, answer) == ('1+1?', '2')\nassert task['id'] == 'sum'\n"
    look += "assert task['messages'] == [{'role': 'user', 'content': '1+1?'}]\n"
    look += "return len(completion) + task['index']"
    (one,) = await scored(run([python()]), "four", module=module(look))
    assert one == Scored(4.0, {"style": 4.0})


async def test_a_module_may_have_state_of_its_own_that_no_completion_sees_again(
    scored: Score,
) -> None:
    counting = "import dataclasses\n\n@dataclasses.dataclass\nclass Seen:\n    n: 'int' = 0\n\n"
    counting += "seen = Seen()\n" + module("seen.n += 1\nreturn seen.n")
    group = await scored(run([python()]), "a", "b", "c", module=counting)
    assert [one.reward for one in group] == [1, 1, 1]


BAD: dict[str, tuple[str, str]] = {
    "None": ("pass", "Malformed"),
    "a string": ("return '1'", "Malformed"),
    "a boolean": ("return True", "Malformed"),
    "a list": ("return [1]", "Malformed"),
    "not a number": ("return float('nan')", "NotFinite"),
    "endless": ("return float('inf')", "NotFinite"),
    "too large": ("return 1e7", "OutOfRange"),
    "an error": ("raise ValueError('no')", "Raised"),
    "the end": ("raise SystemExit", "Raised"),
    "a hang": ("while True: pass", "Timeout"),
    "sleep": ("import time; time.sleep(100)", "Timeout"),
    "a fork": ("import os; os.fork(); return 1", "Raised"),
    "a thread": (
        "import threading\nthreading.Thread(target=print).start()\nreturn 1",
        "Raised",
    ),
    "a gigabyte": ("while True: print('x' * 1_000_000)", "Timeout"),
    "a gigabyte of memory": ("x = bytearray(1 << 31); return 1", "Memory"),
    "death": ("import os; os._exit(0)", "Died"),
    "a socket": ("import socket; socket.socket(); return 1", "Raised"),
    "the token": ("open('/var/run/secrets/espalier/token').read(); return 1", "Raised"),
    "the cluster": ("open('/etc/passwd').read(); return 1", "Raised"),
    "a program": ("import subprocess; subprocess.run(['true']); return 1", "Raised"),
    "a name": ("return undefined", "Raised"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
async def test_what_a_module_does_wrong_is_a_failure_by_cause_and_never_0(
    scored: Score, case: tuple[str, str]
) -> None:
    body, cause = case
    (one,) = await scored(run([python(timeoutSeconds=2)]), "x", module=module(body))
    assert one.reward is None
    assert one.parts == {}
    ((failed),) = one.failures
    assert (failed.reward, failed.cause) == ("style", cause), failed


async def test_a_module_that_fails_as_a_whole_is_a_failure_of_each_completion(
    scored: Score,
) -> None:
    broken = "import no_such_package\n" + module("return 1")
    (one,) = await scored(run([python()]), "x", module=broken)
    assert "No module named 'no_such_package'" in one.failures[0].detail


async def test_a_completion_that_a_module_runs_reaches_nothing(scored: Score) -> None:
    """The worst module there is: it runs what the model wrote."""
    attack = "__import__('os').listdir('/root') and 1"
    (one,) = await scored(run([python()]), attack, module=module("return eval(completion)"))
    assert one.failures[0].cause == "Raised"
    assert "PermissionError" in one.failures[0].detail


async def test_a_reward_has_the_range_that_it_declares(scored: Score) -> None:
    declared = run([python(minimum="-1", maximum="3")])
    body = module("return float(completion)")
    group = await scored(declared, "3", "-1", "3.5", "-2", module=body)
    assert [one.reward for one in group] == [3, -1, None, None]
    assert group[2].failures[0].detail == "its reward is not from -1 to 3"


async def test_under_zero_a_failure_is_counted_and_only_its_own_reward_is_0(
    scored: Score,
) -> None:
    declared = run([{"name": "right", "exact": {}}, python(onError="Zero")])
    (one,) = await scored(declared, "<answer>2</answer>", module=module("return 1 / 0"))
    assert (one.reward, one.parts) == (1.0, {"right": 1.0, "style": 0.0})
    assert one.failures[0].cause == "Raised"


async def test_under_fail_it_names_task_reward_cause_and_remedy(scored: Score) -> None:
    with pytest.raises(RewardFailedError) as failed:
        await scored(run([python(onError="Fail")]), "x", module=module("return 1 / 0"))
    assert failed.value.detail.startswith("task sum, reward style: Raised: ZeroDivisionError")
    assert "onError" in failed.value.remedy


async def test_an_expression_that_takes_for_ever_is_stopped(scored: Score) -> None:
    declared = run([{"name": "slow", "timeoutSeconds": 1, "regex": {"pattern": "(a+)+$"}}])
    slow, fast = await scored(declared, "a" * 40 + "b", "aa")
    assert slow.failures[0].cause == "Timeout"
    assert fast.reward == 1


async def test_rewards_that_are_normalized_on_their_own_give_advantages(scored: Score) -> None:
    declared = run(
        [{"name": "right", "exact": {}}, python(weight="2")],
        rewardAggregation="NormalizeThenSum",
    )
    body = module("return 100.0 * len(completion)")
    group = await scored(declared, "<answer>2</answer>", "<answer>33</answer>", module=body)
    # Right and short, wrong and long: each reward counts one deviation by its weight.
    assert [one.advantage for one in group] == pytest.approx([1 - 2, -1 + 2], abs=1e-3)
    assert [one.reward for one in group] == [1 + 2 * 1800, 2 * 1900]


def cut(text: str) -> Completion:
    return written(text, tokens=10, finish="length")


async def test_each_overlong_policy_does_what_it_says(scored: Score) -> None:
    async def under(**overlong: object) -> list[Scored]:
        return await scored(run(None, overlong=overlong), cut("<answer>2</answer>"))

    assert await under(policy="Keep") == [Scored(1.0, {"taskset": 1.0})]
    assert await under(policy="Mask") == [Scored(1.0, {"taskset": 1.0}, masked=True)]
    assert await under(policy="Drop") == [Scored(1.0, {"taskset": 1.0}, leaves_out=True)]
    assert await under(policy="ZeroReward") == [Scored(0.0, {"taskset": 0.0})]
    (soft,) = await under(policy="SoftPenalty", bufferTokens=4)
    assert soft == Scored(0.0, {"taskset": 1.0, "overlong": -1.0})


async def test_a_cut_completion_that_earns_0_is_not_even_scored(scored: Score) -> None:
    declared = run([python(onError="Fail")], overlong={"policy": "ZeroReward"})
    (one,) = await scored(declared, cut("x"), module=module("return 1 / 0"))
    assert one.reward == 0


async def test_tokens_beyond_the_target_are_taken_off_the_reward(scored: Score) -> None:
    declared = run(None, lengthPenalty={"coefficient": "0.5", "targetTokens": 4})
    (one,) = await scored(declared, written("<answer>2</answer>", tokens=6))
    assert (one.reward, one.parts) == (0.75, {"taskset": 1.0, "length": -0.5})


@pytest.mark.parametrize(
    ("declared", "detail"),
    [
        ({"name": "r", "regex": {"pattern": "("}}, "r.regex.pattern: '(' is no expression"),
        ({"name": "r", "regex": {"pattern": "a", "group": 1}}, "r.regex.group: 1 of 0 groups"),
        ({"name": "n", "numeric": {}}, "n.numeric: the answer of task sum is no number"),
        (python("p"), "p.python: configmap/rewards/reward.py has no function reward"),
    ],
)
async def test_what_cannot_work_is_refused_by_name_before_anything_is_scored(
    scored: Score, monkeypatch: pytest.MonkeyPatch, declared: dict[str, Any], detail: str
) -> None:
    monkeypatch.setitem(ROW, "answer", "two")
    with pytest.raises(UserError) as refused:
        await scored(run([declared]), "x", module="pass")
    assert refused.value.problem.reason == "RewardInvalid"
    assert detail in refused.value.problem.detail
    assert refused.value.problem.remedy


def test_a_module_that_is_not_there_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    read = mounted_modules(tmp_path)
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "bad.py").write_bytes(b"\xff")
    (tmp_path / "style" / "large.py").write_bytes(b"#" * ((1 << 20) + 1))
    for name, why in (("none.py", "No such file"), ("bad.py", "utf-8"), ("large.py", "more than")):
        with pytest.raises(ModuleError, match=rf"cannot be read: .*{why}"):
            read("style", name)
