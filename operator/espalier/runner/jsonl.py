"""Tasks with their answers: JSON lines of a ConfigMap, a claim, an image or any file, or inline."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from espalier.api.run.inline_tasks import InlineTask
from espalier.api.run.taskset import TaskFile, Taskset
from espalier.environments.errors import invalid
from espalier.environments.tasks import Message, Task, within
from espalier.rewards.extraction import is_number
from espalier.runner.scorer_spec import Match
from espalier.runner.task_protocol import ask, system

# Of one text of a task. No context of a model here holds more.
MOST_BYTES = 65536


class _RowMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Row(BaseModel):
    """One line: ``{id?, prompt | messages, answer}``."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    id: str = ""
    prompt: str | None = Field(default=None, min_length=1)
    messages: list[_RowMessage] | None = Field(default=None, min_length=1)
    answer: str = Field(min_length=1)


class RowTasks:
    """Rows in an order drawn from the taskset's seed."""

    def __init__(self, spec: Taskset, source: str, rows: Sequence[Row]) -> None:
        self._spec = spec
        self._name = source
        # Drawn whole, so that the rows beyond the size are the same whatever the size.
        order = random.Random(spec.seed).sample(range(len(rows)), k=len(rows))[: spec.size]
        self._rows = [rows[position] for position in order]
        self._positions = order

    @property
    def size(self) -> int:
        """Number of tasks: the rows, at most ``spec.size`` of them."""
        return len(self._rows)

    def task(self, index: int) -> Task:
        """The task at a place in the drawn order; its id is the row's, or names the row."""
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


class JsonlTasks(RowTasks):
    """Tasks of a file.

    Raises:
        UserError: ``TasksetInvalid``, naming source, line and field.
    """

    def __init__(
        self, spec: Taskset, source: str, path: Path, check: str = "Check the file"
    ) -> None:
        super().__init__(spec, source, _read(spec, source, path, check))


class InlineTasks(RowTasks):
    """Tasks that stand in the run.

    Raises:
        UserError: ``TasksetInvalid``, naming task and field.
    """

    def __init__(self, spec: Taskset, tasks: Sequence[InlineTask]) -> None:
        rows = [Row.model_validate({**task.wire(), "id": f"inline/{task.id}"}) for task in tasks]
        for task, row in zip(tasks, rows, strict=True):
            _check(spec, f"taskset.inline {task.id}", row)
        _distinct("taskset.inline", rows)
        super().__init__(spec, "inline", rows)


def file_tasks(spec: Taskset, file: TaskFile, directory: Path) -> JsonlTasks:
    """The tasks of a file whose source is mounted at ``directory``."""
    return JsonlTasks(spec, file.name, directory / file.path, f"Check taskset.{file.field}")


def _messages(spec: Taskset, row: Row) -> tuple[Message, ...]:
    if row.prompt is not None:
        return ask(spec, row.prompt)
    return (*system(spec), *(Message(m.role, m.content) for m in row.messages or ()))


def _read(spec: Taskset, source: str, path: Path, check: str) -> list[Row]:
    try:
        # Of the characters that Python takes for the end of a line, JSON lines know one; the others
        # may stand in a text. Windows writes a byte-order mark first.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise invalid(f"{source} cannot be read: {_there(path)}", check) from error
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(f"{source} cannot be read: {error}", check) from error
    rows = [
        _row(spec, source, number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not rows:
        raise invalid(f"{source} has no tasks", "Write one JSON object a line")
    _distinct(source, rows)
    return rows


def _there(path: Path) -> str:
    """What lies where the file is not; a kubelet's own entries begin with two dots."""
    try:
        names = sorted(one.name for one in path.parent.iterdir() if not one.name.startswith(".."))
    except OSError:
        names = []
    return f"it has no {path.name}, only {', '.join(names)}" if names else "there are no keys"


def _row(spec: Taskset, source: str, number: int, line: str) -> Row:
    where = f"{source} line {number}"
    try:
        row = Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        detail = f"{where}, {field}: {first['msg']}" if field else f"{where}: {first['msg']}"
        raise invalid(detail, "A line is {id, prompt or messages, answer}") from error
    _check(spec, where, row)
    return row


def _check(spec: Taskset, where: str, row: Row) -> None:
    if (row.prompt is None) == (row.messages is None):
        raise invalid(
            f"{where}, prompt: set exactly one of prompt and messages", "Remove the other"
        )
    if row.messages is not None and spec.prompt_template:
        raise invalid(
            f"{where}, messages: taskset.promptTemplate wraps a prompt, not messages",
            "Use prompt in the line, or remove promptTemplate",
        )
    if spec.answer_extraction == "LastNumber" and not is_number(row.answer.strip()):
        raise invalid(
            f"{where}, answer: {row.answer!r} is not a number",
            "taskset.answerExtraction LastNumber needs numbers: mend the line or choose another",
        )
    longest = max(len(text.encode("utf-8", "surrogatepass")) for text in _texts(row))
    if longest > MOST_BYTES:
        raise invalid(
            f"{where}: a text of {longest} bytes, and {MOST_BYTES} are the most",
            "Shorten it or leave the task out: no model here could be asked that",
        )


def _texts(row: Row) -> list[str]:
    return [row.prompt or "", row.answer, *(message.content for message in row.messages or ())]


def _distinct(source: str, rows: Sequence[Row]) -> None:
    """Ids tell tasks and their seeds apart."""
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise invalid(
                f"{source}: two tasks have the id {row.id}", "Give each task its own id, or none"
            )
        if row.id:
            seen.add(row.id)
