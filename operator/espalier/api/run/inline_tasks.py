"""Tasks that stand in the run itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel

# An object of Kubernetes has at most 1.5 MiB, and every client that applies it keeps a copy.
MOST_TASKS, MOST_CHARACTERS, MOST_MESSAGES = 64, 4096, 16
TASK_ID_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"

_Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


class InlineMessage(Type):
    """One message of a task's chat."""

    role: Literal["system", "user", "assistant"] = Field(
        description="role is system, user or assistant."
    )
    content: _Text = Field(description="content of the message.")


class InlineTask(Type):
    """One task with its answer."""

    id: str = Field(
        description="id names the task in logs and rollouts; no two tasks have the same.",
        pattern=TASK_ID_PATTERN,
        max_length=63,
    )
    prompt: _Text | None = Field(
        default=None, description="prompt is the question, which promptTemplate wraps."
    )
    messages: list[InlineMessage] | None = Field(
        default=None,
        description="messages are the whole chat in place of a prompt.",
        min_length=1,
        max_length=MOST_MESSAGES,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    answer: _Text = Field(description="answer that is compared with the extracted one.")

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.prompt) != has(self.messages)",
                "set exactly one of prompt and messages: remove the other",
                ".prompt",
            )
        )
    )
