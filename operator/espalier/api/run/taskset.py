"""What a run asks of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel, list_map, without_default
from espalier.api.run.answered_sources import ClaimTasks, ConfigMapTasks, ImageTasks, ReasoningGym
from espalier.api.run.environment_sources import (
    Calculator,
    Game2048,
    OpenEnv,
    PythonSource,
    Timed,
    UserImage,
    Verifiers,
)
from espalier.api.run.inline_tasks import MOST_TASKS, InlineTask

# Of tasks that are one question with an answer, and of tasks that are played over turns.
ANSWERED = ("reasoningGym", "inline", "configMap", "persistentVolumeClaim", "image")
PLAYED = ("game2048", "calculator", "openEnv", "verifiers", "python")
SOURCES = (*ANSWERED, *PLAYED)


def is_played(taskset: str) -> str:
    """A rule: whether the taskset that ``taskset`` names is played over turns."""
    return f"({' || '.join(f'has({taskset}.{name})' for name in PLAYED)})"


# What only tasks with an answer have, as a rule says that a played source leaves it alone.
_OF_ANSWERS = (
    "!has(self.promptTemplate) && self.answerExtraction == 'AnswerTag'"
    " && !has(self.scoreTimeoutSeconds)"
)
# Whose chat is its own: the user's function, or what the package's tasks say.
_OWN_CHAT = ("verifiers", "python")


@dataclass(frozen=True)
class TaskFile:
    """The file of a taskset: its name for people, what a pod mounts for it, and where it is there.

    ``field`` is what of the spec names it.
    """

    name: str
    mounted: str
    path: str
    field: str


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
    inline: list[InlineTask] | None = Field(
        default=None,
        description=f"inline holds the tasks in the run itself: at most {MOST_TASKS}.",
        min_length=1,
        max_length=MOST_TASKS,
        json_schema_extra=list_map("id"),
    )
    game_2048: Game2048 | None = Field(
        default=None, description="game2048 plays the game 2048, one move a turn."
    )
    calculator: Calculator | None = Field(
        default=None, description="calculator asks arithmetic, with a tool that evaluates."
    )
    open_env: OpenEnv | None = Field(
        default=None, description="openEnv plays episodes of a server of OpenEnv's protocol."
    )
    verifiers: Verifiers | None = Field(
        default=None, description="verifiers takes tasks and rewards of a module of verifiers."
    )
    python: PythonSource | None = Field(
        default=None, description="python plays your own function in your own image."
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
        "gave no number from 0 to 1, and a rollout whose environment failed: its group is dropped "
        "(DropGroup), the reward is 0 (Zero), or the run stops (Fail). It is counted in "
        "rollout/scorer_errors. DropGroup if unset; with spec.rewards each of them has its own "
        "onError.",
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
            (
                f"!{is_played('self')} || ({_OF_ANSWERS})",
                "promptTemplate, answerExtraction and scoreTimeoutSeconds are of tasks with an "
                "answer, not of tasks that are played: remove them",
            ),
            (
                f"!({' || '.join(f'has(self.{name})' for name in _OWN_CHAT)})"
                " || !has(self.systemPrompt)",
                f"systemPrompt is none of {' and '.join(_OWN_CHAT)}, whose tasks write their own "
                "chat: say it there",
                ".systemPrompt",
            ),
        )
    )

    @property
    def played(self) -> Timed | None:
        """The environment that plays the tasks; None where each is one question."""
        given = (self.game_2048, self.calculator, self.open_env, self.verifiers, self.python)
        return next((source for source in given if source is not None), None)

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

    @property
    def user_image(self) -> UserImage | None:
        """The image that plays the tasks in a container of its own; None where none does."""
        return self.python or self.verifiers

    @property
    def mounted(self) -> str:
        """What a pod is given to read or play the tasks; empty where it needs nothing more."""
        if self.user_image is not None:
            return f"environment/{self.user_image.image}"
        return self.file.mounted if self.file is not None else ""
