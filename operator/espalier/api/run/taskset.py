"""What a run asks of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Name, Type, cel, explained, without_default

DATASET_PATTERN = r"^[a-z0-9_]+$"
FILE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"
SOURCES = ("reasoningGym", "configMap", "persistentVolumeClaim", "image")


def _path(where: str) -> Any:
    return Field(
        description=f"path of the file {where}, with one task a line as in a ConfigMap.",
        pattern=FILE_PATTERN,
        max_length=400,
        json_schema_extra=explained(
            FILE_PATTERN, "must be a relative path without '..', such as gsm8k/train.jsonl"
        ),
    )


@dataclass(frozen=True)
class TaskFile:
    """The file of a taskset: its name for people, what a pod mounts for it, and where it is there.

    ``field`` is what of the spec names it.
    """

    name: str
    mounted: str
    path: str
    field: str


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


class ClaimTasks(Type):
    """Tasks as JSON lines on a claim."""

    claim_name: Name = Field(description="claimName of the claim that holds the file.")
    path: str = _path("inside the claim")

    @property
    def directory(self) -> str:
        """Where the file is; empty for the root of the claim."""
        return self.path.rpartition("/")[0]


class ImageTasks(Type):
    """Tasks as JSON lines in an OCI image, which needs ``cp``."""

    reference: str = Field(
        description="reference of the image, whose files under /tasks are copied.",
        min_length=1,
        max_length=400,
    )
    path: str = _path("below /tasks")


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
        default=None, description="configMap holds the tasks: at most 1 MiB of them."
    )
    persistent_volume_claim: ClaimTasks | None = Field(
        default=None, description="persistentVolumeClaim holds the tasks: as many as there are."
    )
    image: ImageTasks | None = Field(
        default=None, description="image holds the tasks: as many as there are."
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
        description="scoreTimeoutSeconds is how long the scorer may take for one completion; 5 if "
        "unset. With spec.rewards each of them has its own timeoutSeconds.",
        json_schema_extra=without_default,
    )
    on_error: Literal["DropGroup", "Zero", "Fail"] = Field(
        default="DropGroup",
        description="onError says what a completion is worth whose scorer raised, hung, died or "
        "gave no number from 0 to 1: its group is dropped (DropGroup), the reward is 0 (Zero), or "
        "the run stops (Fail). It is counted in rollout/scorer_errors. DropGroup if unset; with "
        "spec.rewards each of them has its own onError.",
        json_schema_extra=without_default,
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                f"[{', '.join(f'has(self.{name})' for name in SOURCES)}].filter(x, x).size() == 1",
                f"set exactly one of {', '.join(SOURCES[:-1])} and {SOURCES[-1]}",
            ),
            (
                "!has(self.promptTemplate) || self.promptTemplate.contains('{question}')",
                "promptTemplate must contain {question}",
                ".promptTemplate",
            ),
        )
    )

    @property
    def file(self) -> TaskFile | None:
        """The file that holds the tasks; None where they are generated."""
        if (given := self.config_map) is not None:
            name = f"configmap/{given.name}"
            return TaskFile(f"{name}/{given.key}", name, given.key, "configMap.name and key")
        if (claim := self.persistent_volume_claim) is not None:
            name, _, file = f"claim/{claim.claim_name}/{claim.path}".rpartition("/")
            field = "persistentVolumeClaim.claimName and path"
            return TaskFile(f"{name}/{file}", name, file, field)
        if (image := self.image) is not None:
            name = f"image/{image.reference}"
            return TaskFile(f"{name}/{image.path}", name, image.path, "image.reference and path")
        return None
