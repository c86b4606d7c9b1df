"""Prompts and tasks that a run cannot ask, and cut answers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.runner.bench import BRIEF, Bench

from espalier.client.errors import TOO_LONG
from espalier.runner.run_end import UserError


async def test_a_prompt_beyond_the_context_is_passed_over_counted_and_named(
    bench: Bench, tmp_path: Path
) -> None:
    bench.gateway.spec |= {"steps": 1, "groupsPerStep": 8}
    bench.gateway.context = 4
    rows = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(8)]
    rows[3] = json.dumps({"id": "long", "prompt": "much too long", "answer": "3"})
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    await bench.drive()
    assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 7 * 4
    (step,) = bench.gateway.bodies("optim-step")
    assert step["metrics"]["group/prompt_too_long"] == 1
    (skipped,) = bench.events("prompt-too-long")
    assert skipped["task"] == "long"
    assert "maximum context length is 4" in skipped["detail"]


@pytest.mark.parametrize("policy", ["Drop", "Fail"])
async def test_a_prompt_beyond_the_limit_of_the_run_is_dropped_or_ends_it_by_name(
    bench: Bench, tmp_path: Path, policy: str
) -> None:
    rows = [json.dumps({"prompt": f"{n}=", "answer": str(n)}) for n in range(8)]
    rows[3] = json.dumps({"id": "long", "prompt": "3=" + "?" * 20, "answer": "3"})
    (tmp_path / "tasks.jsonl").write_text("\n".join(rows))
    bench.gateway.spec |= {"steps": 1, "groupsPerStep": 8}
    bench.gateway.spec["limits"] = {"maxPromptTokens": 10, "promptPolicy": policy}
    if policy == "Drop":
        await bench.drive()
        assert len(bench.gateway.bodies("forward-backward")[0]["inputs"]) == 7 * 4
        (step,) = bench.gateway.bodies("optim-step")
        assert step["metrics"]["group/prompt_too_long"] == 1
        (skipped,) = bench.events("prompt-too-long")
        assert (skipped["task"], skipped["detail"]) == (
            "long",
            "it has 22 tokens, and limits.maxPromptTokens is 10",
        )
        return
    with pytest.raises(UserError) as raised:
        await bench.drive()
    problem = raised.value.problem
    assert (problem.reason, bench.gateway.kinds()) == ("PromptTooLong", [])
    assert "the prompt of task long is too long" in problem.detail
    assert "limits.promptPolicy: Drop" in problem.remedy


async def test_when_no_prompt_fits_the_run_ends_and_names_one(bench: Bench) -> None:
    bench.gateway.context = 1
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "PromptTooLong"
    assert "in 3 rounds no prompt of a task fitted" in raised.value.problem.detail
    assert "configmap/digits/tasks.jsonl/" in raised.value.problem.detail


async def test_another_refusal_of_a_prompt_still_ends_the_run(bench: Bench) -> None:
    bench.gateway.fail("chat", 400)
    with pytest.raises(UserError) as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.reason == "Status400"


def test_the_words_are_those_of_the_vllm_that_is_installed() -> None:
    found = find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    text = (Path(found.origin).parent / "renderers" / "params.py").read_text()
    assert f"This model's {TOO_LONG}" in text


async def test_advantages_that_no_taskset_gives_are_refused_before_anything_is_sampled(
    bench: Bench,
) -> None:
    """A run of an older version may say so; the API server admits none today."""
    bench.gateway.spec |= {"advantage": {"source": "Precomputed"}}
    with pytest.raises(UserError, match="no taskset gives advantages") as raised:
        await bench.drive()
    assert raised.value.problem.reason == "AdvantageSourceInvalid"
    assert not bench.gateway.samples


async def test_tasks_that_moved_elsewhere_end_the_process_so_that_another_mounts_them(
    bench: Bench,
) -> None:
    bench.mounted = "configmap/digits"

    def move() -> None:
        taskset = {**bench.gateway.spec["taskset"], "configMap": {"name": "others"}}
        bench.gateway.spec["taskset"] = taskset

    bench.gateway.hooks["optim-step"] = move
    await bench.drive()
    assert bench.gateway.kinds().count("optim-step") == 1
    assert bench.events("tasks-moved")[0]["to"] == "configmap/others/tasks.jsonl"
    assert not bench.events("finished")


async def test_a_run_that_drops_cut_completions_says_so_when_no_other_group_teaches(
    bench: Bench,
) -> None:
    bench.gateway.finish_reason = "length"
    bench.gateway.spec |= {"steps": 1, "overlong": {"policy": "Drop"}}
    with pytest.raises(UserError, match=r"overlong\.policy is Drop") as raised:
        await bench.drive(BRIEF)
    assert raised.value.problem.remedy.startswith("Raise sampling.maxTokens")
    assert bench.gateway.kinds() == []
