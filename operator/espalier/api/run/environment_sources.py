"""Tasks that are played over several turns: whose rollout function is not one question."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Name, NonNegativeDecimal, Type, cel, explained
from espalier.api.podtemplate import Resources

FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
MODULE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
FREE: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}

Protocol = Literal["Text", "ToolCall"]


class Timed(Type):
    """What every environment bounds."""

    timeout_seconds: int = Field(
        default=600,
        ge=1,
        le=86400,
        description="timeoutSeconds is how long one rollout may take, sampling included; then it "
        "has failed, and taskset.onError says what follows.",
    )


class Played(Timed):
    """What every environment of several turns bounds."""

    max_turns: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="maxTurns that the model takes in one rollout; what is reached by then counts.",
    )


def _protocol(what: str) -> Any:
    return Field(
        default="Text",
        description=f"protocol is Text ({what}) or ToolCall (a call of the tool, for which the "
        "model's rollout.toolCallParser must be set).",
    )


class InvalidMoves(Type):
    """What a move that is none, or moves nothing, costs."""

    penalty: NonNegativeDecimal = Field(
        default="0.05",
        description='penalty is taken from the reward for each, a quoted decimal such as "0.05"; '
        "the board stays as it is.",
    )
    limit: int = Field(
        default=3, ge=1, le=4096, description="limit is the number of them that ends the game."
    )


class Game2048(Played):
    """The game 2048: text boards, one move a turn."""

    target: int = Field(
        default=128,
        ge=8,
        le=131072,
        description="target is the tile that is worth a reward of 1 and ends the game; a power of "
        "2. The reward is log2 of the highest tile by log2 of the target, less the penalties.",
        json_schema_extra=cel(
            (
                f"self in [{', '.join(str(2**n) for n in range(3, 18))}]",
                "must be a power of 2, such as 128",
            )
        ),
    )
    invalid_moves: InvalidMoves = Field(
        default_factory=InvalidMoves, description="invalidMoves says what they cost."
    )
    protocol: Protocol = _protocol("the answer's first word up, down, left or right")


class Calculator(Played):
    """Arithmetic with a tool that evaluates."""

    terms: int = Field(default=3, ge=2, le=8, description="terms of an expression.")
    digits: int = Field(default=3, ge=1, le=9, description="digits of a term at most.")
    protocol: Protocol = _protocol("lines calc: EXPRESSION and answer: NUMBER")


class ServiceRef(Type):
    """A port of a Service in the same namespace."""

    name: Name = Field(description="name of the Service in the same namespace.")
    port: int = Field(ge=1, le=65535, description="port of the Service.")


class OpenEnv(Played):
    """Episodes of a server of OpenEnv's protocol, one a connection."""

    service_ref: ServiceRef = Field(description="serviceRef names the Service of the server.")
    reset_options: dict[str, Any] | None = Field(
        default=None,
        description="resetOptions go to the environment's reset beside the seed.",
        json_schema_extra={**FREE, "maxProperties": 32},
    )
    action_field: str = Field(
        default="message",
        description="actionField is the field of the action that takes the model's text. A text "
        "that is a JSON object is the action as it is.",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=63,
    )
    observation_field: str | None = Field(
        default=None,
        description="observationField is the field of the observation that the model reads; the "
        "whole observation as JSON if unset.",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=63,
    )
    tools: list[dict[str, Any]] | None = Field(
        default=None,
        description="tools in OpenAI's form that the model may call; needs the model's "
        "rollout.toolCallParser. A turn without a call is still the action of actionField.",
        min_length=1,
        max_length=32,
        json_schema_extra={
            "items": {"type": "object", **FREE},
            "x-kubernetes-list-type": "atomic",
        },
    )
    tool_action: Literal["Arguments", "CallTool"] = Field(
        default="Arguments",
        description="toolAction is what a call becomes: its Arguments, which takes a single tool, "
        "or OpenEnv's action CallTool with the tool's name.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.tools) || self.toolAction == 'CallTool' || self.tools.size() == 1",
                "toolAction Arguments takes one tool, whose name is not told: set it to CallTool",
                ".toolAction",
            )
        )
    )


class UserImage(Timed):
    """What an image of the user's plays, in a container of its own without any token."""

    image: str = Field(
        description="image with your modules in its working directory or installed, and a python3 "
        "of 3.9 or newer that finds them; of verifiers also verifiers 0.4. Nothing of Espalier is "
        "needed in it.",
        min_length=1,
        max_length=400,
    )
    resources: Resources | None = Field(
        default=None,
        description="resources of its container; requests of 50m CPU and 128Mi memory if unset.",
    )


class Verifiers(UserImage):
    """A taskset of the package verifiers (its v1 API); a rollout is one turn."""

    id: str = Field(
        description="id is the taskset's module, such as my_taskset. Nothing is downloaded.",
        pattern=MODULE_PATTERN,
        max_length=128,
        json_schema_extra=explained(MODULE_PATTERN, "must be the name of a module"),
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="config holds the taskset's own fields.",
        json_schema_extra=FREE,
    )


def _function(what: str) -> Any:
    return Field(
        description=f"{what} as module:function.",
        pattern=FUNCTION_PATTERN,
        max_length=200,
        json_schema_extra=explained(
            FUNCTION_PATTERN, f"must be module:function, such as my_game:{what}"
        ),
    )


class PythonSource(UserImage, Played):
    """Your own tasks and rollout function, in a container of its own without any token."""

    tasks: str = _function("tasks")
    rollout: str = _function("rollout")
