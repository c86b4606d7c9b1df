"""The calculator: what it evaluates, how hostile expressions end, and how answers are paid."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.environments.talk import Model, played

from espalier.api.run.taskset import Taskset
from espalier.environments.arithmetic import MOST_CHARACTERS, ExpressionError, evaluate, shown
from espalier.environments.open_environment import open_environment

Chat = Sequence[Mapping[str, Any]]


def calculator(**fields: Any) -> Any:
    return open_environment(Taskset.model_validate({"seed": 3, "size": 4, "calculator": fields}))


def game(**fields: Any) -> Any:
    return open_environment(Taskset.model_validate({"seed": 3, "size": 4, "game2048": fields}))


def asked(chat: Chat) -> str:
    """The expression of the task."""
    return str(chat[0]["content"]).removeprefix("What is ").split("?")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * -3", "-9"),
        (" 2 - -2", "4"),
        ("0.1 + 0.2", "0.300000"),
        ("1 / 3", "0.333333"),
        ("8 / 4", "2"),
        ("99999999999 * 99999999999", "9999999999800000000001"),
    ],
)
def test_it_evaluates_exactly(text: str, value: str) -> None:
    assert shown(evaluate(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "9**9**9**9",
        "9" * (MOST_CHARACTERS + 1),
        "(" * 100 + "1" + ")" * 100,
        "(" * MOST_CHARACTERS,
        "-" * MOST_CHARACTERS,
        "1(2)",
        "1 // 2",
        "",
        " ",
        "1 / (2 - 2)",
        "1\n+1",
        "1e9",
        "٣ + 1",
        "1.2.3",
        "..",
        "().",
    ],
)
def test_a_hostile_expression_is_an_error_for_the_model_at_once(text: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ExpressionError):
        evaluate(text)
    assert time.monotonic() - begun < 30


@given(st.text("0123456789+-*/(). ", max_size=MOST_CHARACTERS))
def test_whatever_is_written_is_a_value_or_an_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert isinstance(evaluate(text), Fraction)


async def test_the_tool_tells_the_value_and_the_right_answer_is_paid() -> None:
    def says(chat: Chat) -> str:
        told = str(chat[-1]["content"])
        return f"answer: {told.removeprefix('= ')}" if len(chat) > 1 else f"calc: {asked(chat)}"

    reward, talk = await played(calculator(terms=4, digits=5), Model(says))
    assert (reward, talk.rollout.stop_reason) == (1, "done")
    assert talk.metadata == {"calculations": 1}


@pytest.mark.parametrize("answer", ["0.5", "nan", "1e400", "inf", "9" * 70])
async def test_a_wrong_answer_earns_nothing(answer: str) -> None:
    reward, talk = await played(calculator(), Model(lambda chat: f"answer: {answer}"))
    assert reward == 0
    assert talk.rollout.stop_reason in ("done", "max_steps")


async def test_the_expression_itself_is_no_answer() -> None:
    copied = Model(lambda chat: f"answer: {asked(chat).replace(' ', '')}")
    assert (await played(calculator(), copied))[0] == 0


@pytest.mark.parametrize("text", ["\n", " ", "calc:", "answer: ", "left ", "answer: \t", "((("])
async def test_a_long_answer_of_a_hostile_model_is_read_at_once(text: str) -> None:
    for environment in (calculator(maxTurns=1), game(maxTurns=1)):
        begun = time.monotonic()
        await played(environment, Model(lambda chat: text * 200_000))
        assert time.monotonic() - begun < 30


async def test_an_error_of_the_tool_is_told_to_the_model() -> None:
    model = Model(lambda chat: "calc: 1/0")
    await played(calculator(maxTurns=2), model)
    assert model.heard[1][0][-1]["content"] == "error: division by zero"


async def test_by_tool_the_number_alone_is_the_answer() -> None:
    def says(chat: Chat) -> str | tuple[str, dict[str, Any]]:
        if len(chat) > 1:
            return str(chat[-1]["content"]).removeprefix("= ")
        return "calculate", {"expression": asked(chat)}

    reward, talk = await played(calculator(protocol="ToolCall"), Model(says))
    assert reward == 1
    assert len(talk.rollout.turns) == 2


def test_tasks_are_the_same_for_a_seed_and_others_for_another() -> None:
    def questions(seed: int) -> list[str]:
        spec = Taskset.model_validate({"seed": seed, "size": 8, "calculator": {}})
        environment = open_environment(spec)
        return [environment.task(index).messages[0].content for index in range(8)]

    assert questions(1) == questions(1)
    assert len({*questions(1), *questions(2)}) == 16
