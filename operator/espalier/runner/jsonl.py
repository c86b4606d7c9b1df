"""Tasks as JSON lines: of a ConfigMap, a claim or an image, or any file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from espalier.api.run.taskset import TaskFile, Taskset
from espalier.rewards.extraction import is_number
from espalier.runner.run_end import UserError
from espalier.runner.scorer_spec import Match
from espalier.runner.task_protocol import Message, Task, ask, system, within


class _RowMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Row(BaseModel):
    """One line: ``{id?, prompt | messages, answer}``."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    id: str = ""
    prompt: str | None = Field(default=None, min_length=1)
    messages: list[_RowMessage] | None = Field(default=None, min_length=1)
    answer: str = Field(min_length=1)


class JsonlTasks:
    """Tasks of a file in an order drawn from the taskset's seed.

    Raises:
        UserError: ``TasksetInvalid``, naming source, line and field.
    """

    def __init__(
        self, spec: Taskset, source: str, path: Path, check: str = "Check the file"
    ) -> None:
        self._spec = spec
        self._name = source
        rows = _read(spec, source, path, check)
        # Drawn whole, so that the lines beyond the size are the same whatever the size.
        order = random.Random(spec.seed).sample(range(len(rows)), k=len(rows))[: spec.size]
        self._rows = [rows[position] for position in order]
        self._positions = order

    @property
    def size(self) -> int:
        """Number of tasks: the lines, at most ``spec.size`` of them."""
        return len(self._rows)

    def task(self, index: int) -> Task:
        """The task at a place in the drawn order; its id names the line."""
        row = self._rows[within(index, self.size)]
        name = row.id or f"{self._name}/{self._positions[index]}"
        return Task(name, _messages(self._spec, row))

    @property
    def scorer(self) -> Match:
        """1 for the row's answer, else 0."""
        return Match(extraction=self._spec.answer_extraction)

    def reference(self, index: int) -> str:
        """The row's answer."""
        return self._rows[within(index, self.size)].answer

    def answer(self, index: int) -> str:
        """The row's answer."""
        return self.reference(index)


def file_tasks(spec: Taskset, file: TaskFile, directory: Path) -> JsonlTasks:
    """The tasks of a file whose source is mounted at ``directory``."""
    return JsonlTasks(spec, file.name, directory / file.path, f"Check taskset.{file.field}")


def _messages(spec: Taskset, row: _Row) -> tuple[Message, ...]:
    if row.prompt is not None:
        return ask(spec, row.prompt)
    return (*system(spec), *(Message(m.role, m.content) for m in row.messages or ()))


def _read(spec: Taskset, source: str, path: Path, check: str) -> list[_Row]:
    try:
        # Of the characters that Python takes for the end of a line, JSON lines know one; the others
        # may stand in a text. Windows writes a byte-order mark first.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise _invalid(f"{source} cannot be read: {_there(path)}", check) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{source} cannot be read: {error}", check) from error
    rows = [
        _row(spec, source, number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not rows:
        raise _invalid(f"{source} has no tasks", "Write one JSON object a line")
    return rows


def _there(path: Path) -> str:
    """What lies where the file is not; a kubelet's own entries begin with two dots."""
    try:
        names = sorted(one.name for one in path.parent.iterdir() if not one.name.startswith(".."))
    except OSError:
        names = []
    return f"it has no {path.name}, only {', '.join(names)}" if names else "there are no keys"


def _row(spec: Taskset, source: str, number: int, line: str) -> _Row:
    where = f"{source} line {number}"
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        detail = f"{where}, {field}: {first['msg']}" if field else f"{where}: {first['msg']}"
        raise _invalid(detail, "A line is {id, prompt or messages, answer}") from error
    if (row.prompt is None) == (row.messages is None):
        raise _invalid(
            f"{where}, prompt: set exactly one of prompt and messages", "Remove the other"
        )
    if row.messages is not None and spec.prompt_template:
        raise _invalid(
            f"{where}, messages: taskset.promptTemplate wraps a prompt, not messages",
            "Use prompt in the line, or remove promptTemplate",
        )
    if spec.answer_extraction == "LastNumber" and not is_number(row.answer.strip()):
        raise _invalid(
            f"{where}, answer: {row.answer!r} is not a number",
            "taskset.answerExtraction LastNumber needs numbers: mend the line or choose another",
        )
    return row


def _invalid(detail: str, remedy: str) -> UserError:
    return UserError("TasksetInvalid", detail, remedy)
