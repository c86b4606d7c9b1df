"""Arithmetic as an environment, with a tool that evaluates: the model may ask it as it likes."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any

from espalier.api.run.environment_sources import Calculator
from espalier.client.completion import Completion
from espalier.environments.arithmetic import ExpressionError, evaluate, shown
from espalier.environments.conversation import answers, call, tool, turn
from espalier.environments.generated import Generated
from espalier.environments.tasks import Task, task_seed, within
from espalier.loop.session import Session

IN_WORDS = (
    "Write a line 'calc: EXPRESSION' and you are told its value. "
    "Write a line 'answer: NUMBER' when you know the result."
)
BY_TOOL = "The tool calculate evaluates an expression. Answer with the number alone."
CALCULATE = tool(
    "calculate",
    "Evaluates an expression of numbers, + - * / and brackets.",
    {"expression": {"type": "string"}},
)
NEITHER = "That is neither a calculation nor an answer."

# Blanks of a line, not \s: a text of newlines alone would take the square of its length.
_CALC = re.compile(r"^[ \t]*calc:(.*)$", re.IGNORECASE | re.MULTILINE)
_ANSWER = re.compile(r"^[ \t]*answer:[ \t]*(\S{1,64})[ \t]*$", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?[0-9]{1,64}(\.[0-9]{1,64})?")


class CalculatorEnvironment(Generated[Calculator]):
    """Expressions drawn from the taskset's seed."""

    NAME = "calculator"
    VERSION = 1

    def task(self, index: int) -> Task:
        """An expression to evaluate."""
        source = self._source
        name = f"calculator/{source.terms}x{source.digits}/{within(index, self.size)}"
        expression = _expression(random.Random(task_seed(self._spec.seed, name)), source)
        asked = f"What is {expression}? {BY_TOOL if self._by_tool else IN_WORDS}"
        answer = shown(evaluate(expression))
        return Task(name, self._asked(asked), {"answer": answer})

    async def rollout(self, task: Task, session: Session) -> float:
        """1 for the right answer, else 0; a turn that is neither calculation nor answer goes on."""
        session.tools = [CALCULATE] if self._by_tool else ()
        session.stop("max_steps")
        said: list[Any] = [message.wire() for message in task.messages]
        calculations = 0
        reward = 0.0
        for _ in range(self._source.max_turns):
            completion = await turn(session, *said)
            if completion is None:
                break
            expression, answer = self._read(completion)
            if answer is not None:
                session.stop("done")
                reward = float(_number(answer) == Fraction(task.data["answer"]))
                break
            calculations += expression is not None
            said = answers(completion, NEITHER if expression is None else _told(expression))
        session.metadata.update(calculations=calculations)
        return reward

    def _read(self, completion: Completion) -> tuple[str | None, str | None]:
        """The expression to evaluate or the answer; an answer ends the rollout before any other."""
        text = completion.text
        if not self._by_tool:
            if answers_given := _ANSWER.findall(text):
                return None, answers_given[-1]
            found = _CALC.search(text)
            return (found[1].strip() if found is not None else None), None
        if completion.tool_calls:
            made = call(completion, ["calculate"])
            expression = made[1].get("expression") if made is not None else None
            return (expression if isinstance(expression, str) else None), None
        return None, text.strip()


def _expression(draw: random.Random, source: Calculator) -> str:
    most = 10**source.digits - 1
    text = str(draw.randint(0, most))
    for _ in range(source.terms - 1):
        text += f" {draw.choice('+-*')} {draw.randint(0, most)}"
    return text


def _told(expression: str) -> str:
    try:
        return f"= {shown(evaluate(expression))}"
    except ExpressionError as error:
        return f"error: {error}"


def _number(text: str) -> Fraction | None:
    # An expression is no answer: it is the task.
    return Fraction(text) if _NUMBER.fullmatch(text) else None
