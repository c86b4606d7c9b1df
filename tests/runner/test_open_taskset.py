"""Tasksets: what a source gives, and how wrong ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.runner.scoring import reward

from espalier.api.run.taskset import Taskset
from espalier.runner.open_taskset import open_tasks
from espalier.runner.run_end import UserError
from espalier.runner.task_protocol import Message, Tasks


def gym(dataset: str, config: dict[str, Any] | None = None, **fields: Any) -> Tasks:
    source = {"dataset": dataset, "config": config}
    return open_tasks(Taskset.model_validate({"seed": 1, "reasoningGym": source, **fields}))


def jsonl(directory: Path, *lines: str, **fields: Any) -> Tasks:
    (directory / "tasks.jsonl").write_text("\n".join(lines))
    spec = {"seed": 1, "configMap": {"name": "digits"}, **fields}
    return open_tasks(Taskset.model_validate(spec), directory)


def row(prompt: str, answer: str, **fields: Any) -> str:
    return json.dumps({"prompt": prompt, "answer": answer, **fields})


def test_generated_tasks_are_scored_by_their_dataset() -> None:
    tasks = gym("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    task = tasks.task(1)
    assert task.id == "reasoning-gym/chain_sum/1"
    assert task.messages == (
        Message("user", "State the final answer to the following arithmetic problem: 1 + 5 ="),
    )
    assert reward(tasks, 1, "<answer>6</answer>") == 1
    assert reward(tasks, 1, "<answer>7</answer>") == 0


def test_prompts_are_wrapped_even_when_they_hold_braces() -> None:
    tasks = gym(
        "chain_sum", systemPrompt="Be {brief}.", promptTemplate="{question} {json: 1}", size=2
    )
    system, user = tasks.task(0).messages
    assert system == Message("system", "Be {brief}.")
    assert user.content.endswith("= {json: 1}")


@pytest.mark.parametrize(
    ("completion", "paid"),
    [("It is 6", 0), ("", 0), ("<answer>6</answer>", 1), ("<answer>6", 0)],
)
def test_prose_around_the_answer_earns_nothing(completion: str, paid: float) -> None:
    # basic_arithmetic alone would give "It is 6" a part of the reward.
    fields = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "operators": ["+"]}
    tasks = gym("basic_arithmetic", {**fields, "allow_parentheses": False, "allow_negation": False})
    assert "1 + 5" in tasks.task(1).messages[0].content
    assert reward(tasks, 1, completion) == paid


def test_no_answer_earns_nothing_where_the_dataset_would_pay_for_it() -> None:
    assert reward(gym("countdown", size=1), 0, "no idea") == 0


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_of_the_taskset_is_refused(index: int) -> None:
    tasks = gym("chain_sum", size=4)
    with pytest.raises(IndexError, match=r"outside of the taskset's 4 tasks"):
        tasks.task(index)
    with pytest.raises(IndexError):
        tasks.reference(index)


@pytest.mark.parametrize(
    ("dataset", "config", "detail", "remedy"),
    [
        ("chain_sun", None, "taskset.reasoningGym.dataset: reasoning-gym has no", "chain_sum"),
        ("zzzz", None, "taskset.reasoningGym.dataset: reasoning-gym has no", "list of datasets"),
        ("composite", None, "taskset.reasoningGym.dataset: composite cannot be used", "another"),
        ("game_of_life_halting", None, "rewards every answer", "another"),
        ("chain_sum", {"terms": 2}, "taskset.reasoningGym.config of chain_sum", "min_terms"),
        ("chain_sum", {"min_terms": -1}, "taskset.reasoningGym.config of chain_sum", "min_terms"),
        ("chain_sum", {"seed": 3}, "seed is set twice", "taskset.seed"),
    ],
)
def test_a_wrong_dataset_or_argument_is_one_error_that_names_the_field(
    dataset: str, config: dict[str, Any] | None, detail: str, remedy: str
) -> None:
    with pytest.raises(UserError) as raised:
        gym(dataset, config)
    assert raised.value.problem.reason == "TasksetInvalid"
    assert detail in raised.value.problem.detail
    assert remedy in raised.value.problem.remedy


def test_a_taskset_without_a_source_is_refused() -> None:
    sources = r"reasoningGym, taskset\.inline, taskset\.configMap.* taskset\.python"
    with pytest.raises(UserError, match=sources):
        open_tasks(None)


_SURVEY = """
import json, sys
from reasoning_gym.factory import DATASETS
from espalier.api.run.taskset import Taskset
from espalier.runner.run_end import UserError
from espalier.runner.scoring.scorers import open_scorer
from espalier.runner.open_taskset import open_tasks
def reward(scorer, text):
    try:
        return scorer.score(1, text)
    except Exception:
        return None
seen = {}
for name in sys.argv[1:] or sorted(DATASETS):
    spec = Taskset.model_validate({"seed": 7, "size": 2, "reasoningGym": {"dataset": name}})
    try:
        tasks = open_tasks(spec)
    except UserError as error:
        seen[name] = error.problem.detail
        continue
    scorer = open_scorer(tasks.scorer)
    rewards = [reward(scorer, text) for text in ("", "<answer>%</answer>", "nonsense")]
    seen[name] = [tasks.task(1).messages[0].content, rewards]
print("\\n" + json.dumps(seen))
"""


def survey(hash_seed: str, *names: str) -> dict[str, Any]:
    """Prompts and rewards of datasets in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", _SURVEY, *names]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # Some datasets print while they generate; the last line is ours.
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    return survey("0")


def test_every_dataset_but_the_refused_ones_gives_tasks(everything: dict[str, Any]) -> None:
    refused = {name for name, seen in everything.items() if isinstance(seen, str)}
    assert refused == {"composite", "game_of_life_halting"}
    assert len(everything) > 100
    assert all(seen[0] for name, seen in everything.items() if name not in refused)


def test_no_dataset_pays_for_what_holds_no_answer(everything: dict[str, Any]) -> None:
    for name, seen in everything.items():
        if isinstance(seen, list):
            empty, wrong, untagged = seen[1]
            assert (empty, untagged) == (0, 0), name
            assert wrong is None or 0 <= wrong < 0.5, name


def test_tasks_are_the_same_in_another_process(everything: dict[str, Any]) -> None:
    names = ["chain_sum", "isomorphic_strings", "polynomial_multiplication", "ransom_note"]
    assert survey("0", *names) == {name: everything[name] for name in names}


def test_datasets_that_depend_on_the_hash_seed_are_refused_without_it() -> None:
    seen = survey("1", "chain_sum", "ransom_note")
    assert isinstance(seen["chain_sum"], list)
    assert "other tasks in every process" in seen["ransom_note"]


def test_lines_become_tasks_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    lines = [row(f"{digit}=", str(digit)) for digit in range(8)]
    tasks = jsonl(tmp_path, *lines, seed=1)
    asked = [tasks.task(index).messages[0].content for index in range(tasks.size)]
    assert sorted(asked) == [f"{digit}=" for digit in range(8)]
    assert asked != sorted(asked)
    again, other = jsonl(tmp_path, *lines, seed=1), jsonl(tmp_path, *lines, seed=2)
    assert [again.task(index).messages[0].content for index in range(8)] == asked
    assert [other.task(index).messages[0].content for index in range(8)] != asked
    assert tasks.task(0).id == f"configmap/digits/tasks.jsonl/{asked[0][0]}"


def test_a_line_may_hold_a_chat_an_id_and_a_number_as_answer(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+4"}]
    line = json.dumps({"id": "sum", "messages": messages, "answer": 7})
    tasks = jsonl(tmp_path, line, "", answerExtraction="LastNumber")
    assert tasks.size == 1
    assert tasks.task(0).id == "sum"
    assert [message.wire() for message in tasks.task(0).messages] == messages
    assert reward(tasks, 0, "That is 7.0") == 1
    assert reward(tasks, 0, "That is 8") == 0


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_newline_ends_a_line(tmp_path: Path, character: str) -> None:
    # RFC 8259 wants the last three escaped; the others may stand in a text.
    escaped = character < " "
    line = json.dumps({"prompt": f"a{character}b", "answer": "4"}, ensure_ascii=escaped)
    tasks = jsonl(tmp_path, line, line + "\r")
    assert tasks.size == 2
    assert tasks.task(0).messages == (Message("user", f"a{character}b"),)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    assert jsonl(tmp_path, "\ufeff" + row("3=", "3")).task(0).messages[0].content == "3="


def test_a_wrong_key_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "train.jsonl").write_text(row("3=", "3"))
    spec = Taskset.model_validate({"seed": 1, "configMap": {"name": "digits"}})
    with pytest.raises(UserError, match=r"it has no tasks\.jsonl, only train\.jsonl\. Check"):
        open_tasks(spec, tmp_path)


def test_size_takes_a_part_of_the_lines(tmp_path: Path) -> None:
    assert jsonl(tmp_path, *[row(f"{n}=", str(n)) for n in range(8)], size=3).size == 3


@pytest.mark.parametrize(
    ("line", "fields", "message"),
    [
        ("{", {}, "line 2: Invalid JSON"),
        ("[1]", {}, "line 2: Input should be an object"),
        ('{"prompt": "a"}', {}, "line 2, answer: Field required"),
        ('{"answer": "a"}', {}, "line 2, prompt: set exactly one of prompt and messages"),
        ('{"prompt": "", "answer": "a"}', {}, "line 2, prompt: String should have at least 1"),
        ('{"prompt": "a", "anwser": "a"}', {}, "line 2, answer: Field required"),
        ('{"prompt": "a", "answer": "a", "tag": 1}', {}, "line 2, tag: Extra inputs"),
        (
            '{"messages": [{"role": "tool", "content": "a"}], "answer": "a"}',
            {},
            "line 2, messages.0.role",
        ),
        (
            row("a", "four"),
            {"answerExtraction": "LastNumber"},
            "line 2, answer: 'four' is not a number",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}], "answer": "4"}',
            {"promptTemplate": "Q: {question}"},
            "line 2, messages: taskset.promptTemplate",
        ),
    ],
)
def test_a_wrong_line_is_named_with_its_field(
    tmp_path: Path, line: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        jsonl(tmp_path, row("3=", "3"), line, **fields)
    assert raised.value.problem.reason == "TasksetInvalid"
    assert f"configmap/digits/tasks.jsonl {message}" in raised.value.problem.detail


def test_a_source_without_tasks_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tasks"):
        jsonl(tmp_path, "", "")
    (tmp_path / "tasks.jsonl").unlink()
    spec = Taskset.model_validate({"seed": 1, "configMap": {"name": "digits"}})
    with pytest.raises(UserError, match=r"cannot be read.*taskset\.configMap\.name"):
        open_tasks(spec, tmp_path)


@pytest.mark.parametrize(
    ("source", "file", "name"),
    [
        (
            {"persistentVolumeClaim": {"claimName": "data", "path": "gsm8k/train.jsonl"}},
            *("train.jsonl", "claim/data/gsm8k/train.jsonl"),
        ),
        (
            {"persistentVolumeClaim": {"claimName": "data", "path": "train.jsonl"}},
            *("train.jsonl", "claim/data/train.jsonl"),
        ),
        (
            {"image": {"reference": "registry.example/tasks:1", "path": "a/train.jsonl"}},
            *("a/train.jsonl", "image/registry.example/tasks:1/a/train.jsonl"),
        ),
    ],
)
def test_tasks_of_a_claim_or_an_image_are_read_where_they_are_mounted(
    tmp_path: Path, source: dict[str, Any], file: str, name: str
) -> None:
    spec = Taskset.model_validate({"seed": 1, **source})
    with pytest.raises(UserError, match=f"{name} cannot be read") as missing:
        open_tasks(spec, tmp_path)
    (field,) = source
    assert missing.value.problem.remedy.startswith(f"Check taskset.{field}.")
    # More than any ConfigMap holds.
    rows = [row(f"{number} " + "x" * 200, str(number)) for number in range(10_000)]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("\n".join(rows))
    tasks = open_tasks(spec.model_copy(update={"size": 20_000}), tmp_path)
    assert tasks.size == 10_000
    assert tasks.task(0).id.startswith(f"{name}/")
