"""What a run asks of its model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Name, Type, cel, explained

DATASET_PATTERN = r"^[a-z0-9_]+$"


class ReasoningGym(Type):
    """Tasks generated and scored by reasoning-gym."""

    dataset: str = Field(
        description="dataset is a reasoning-gym name, for example basic_arithmetic.",
        pattern=DATASET_PATTERN,
        max_length=64,
        json_schema_extra=explained(
            DATASET_PATTERN,
            "must be a reasoning-gym name: lower-case letters, digits and '_', such as "
            "basic_arithmetic",
        ),
    )
    config: dict[str, Any] | None = Field(
        default=None,
        description="config holds the dataset's own keyword arguments.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class ConfigMapTasks(Type):
    """Tasks as JSON lines in a ConfigMap."""

    name: Name = Field(description="name of the ConfigMap.")
    key: str = Field(
        default="tasks.jsonl",
        description="key with one task a line: {id, prompt or messages, answer}. An id names the "
        "task in logs and rollouts, and need not be the only one of its name.",
        pattern=r"^[-._a-zA-Z0-9]+$",
        max_length=253,
    )


class Taskset(Type):
    """What the model is asked; exactly one source."""

    seed: int = Field(ge=0, le=2**31 - 1, description="seed of generated tasks and of their order.")
    size: int = Field(
        default=256,
        ge=1,
        le=1000000,
        description="size is the number of tasks, at most the lines that there are.",
    )
    reasoning_gym: ReasoningGym | None = Field(
        default=None, description="reasoningGym generates and scores the tasks."
    )
    config_map: ConfigMapTasks | None = Field(
        default=None, description="configMap holds the tasks."
    )
    system_prompt: str | None = Field(
        default=None, description="systemPrompt precedes every task.", max_length=8192
    )
    prompt_template: str | None = Field(
        default=None,
        description="promptTemplate wraps the question, which replaces {question}.",
        max_length=8192,
    )
    answer_extraction: Literal["AnswerTag", "LastNumber", "Whole"] = Field(
        default="AnswerTag",
        description="answerExtraction takes the answer from the completion: the last <answer> tag, "
        "the last number, or the whole text.",
    )
    score_timeout_seconds: int = Field(
        default=5,
        ge=1,
        le=600,
        description="scoreTimeoutSeconds is how long the scorer may take for one completion.",
    )
    on_error: Literal["DropGroup", "Zero", "Fail"] = Field(
        default="DropGroup",
        description="onError says what a completion is worth whose scorer raised, hung, died or "
        "gave no number from 0 to 1: its group is dropped (DropGroup), the reward is 0 (Zero), or "
        "the run stops (Fail). It is counted in reward/scorer_errors.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.reasoningGym) != has(self.configMap)",
                "set exactly one of reasoningGym and configMap",
            ),
            (
                "!has(self.promptTemplate) || self.promptTemplate.contains('{question}')",
                "promptTemplate must contain {question}",
                ".promptTemplate",
            ),
        )
    )
