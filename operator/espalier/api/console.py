"""The console's JSON API, under ``/console/api/v1``: what its page shows, and others may.

Texts of models, tasks and users come as they are: they are hostile, and whoever shows them shows
text.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from espalier.api.checkpointhead import Mode, OnPin


class View(BaseModel):
    """Base of the console's types: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ConditionView(View):
    """A condition of an object."""

    type: str = Field(description="type of the condition, such as Ready.")
    status: str = Field(description="True, False or Unknown.")
    reason: str = Field(description="reason, a word for programs.")
    message: str = Field(description="message, for people.")
    since: str = Field(description="time since when it has this status.")


class ModelView(View):
    """A model as the list shows it."""

    namespace: str = Field(description="namespace of the TrainableModel.")
    name: str = Field(description="name of the TrainableModel.")
    slug: str = Field(description="what completions take as model.")
    source: str = Field(description="what it started from: a base, or a Checkpoint.")
    head: str = Field(description="Checkpoint that the slug serves; empty for the base.")
    step: int = Field(description="step of that Checkpoint.")
    reward: float | None = Field(description="mean reward measured of that Checkpoint.")
    checkpoints: int = Field(description="number of its Checkpoints.")
    runs: int = Field(description="number of TrainingRuns that name it.")
    ready: ConditionView | None = Field(description="condition Ready; null before the first pass.")


class ModelList(View):
    """The models that the caller may get."""

    user: str = Field(description="who the caller is to the API server.")
    namespaces: list[str] = Field(description="namespaces in which it may get a model.")
    models: list[ModelView] = Field(description="models, by namespace and name.")


class EvaluationView(View):
    """The latest evaluation of a name."""

    name: str = Field(description="name of the evaluation.")
    tasks: int = Field(description="tasks that were asked and scored.")
    mean_reward: float | None = Field(description="mean reward.")
    low: float | None = Field(description="low end of its 95 % interval.")
    high: float | None = Field(description="high end of its 95 % interval.")


class CheckpointView(View):
    """A node of the tree."""

    name: str = Field(description="name of the Checkpoint.")
    parent: str = Field(description="Checkpoint that its step started from; empty for the base.")
    branch: str = Field(description="main, or b<term> after a roll-back.")
    step: int = Field(description="optimizer steps along the lineage.")
    term: int = Field(description="term of the head that the step was taken under.")
    run: str = Field(description="TrainingRun that took the step; empty for an import.")
    created: str = Field(description="time of its creation.")
    reward: float | None = Field(description="mean reward measured of it.")
    evaluations: list[EvaluationView] = Field(description="what held-out tasks say of it.")
    heads: list[str] = Field(description="heads whose current Checkpoint it is.")
    superseded: bool = Field(description="whether no head can come by it any more.")


class MoveView(View):
    """One move of a head."""

    checkpoint: str = Field(description="Checkpoint that it moved to; empty for the base.")
    reason: str = Field(description="Advanced, Pinned, Unpinned or Branched.")
    term: int = Field(description="term of the move.")
    time: str = Field(description="time of the move.")


class HeadView(View):
    """A head: what it asks for, what it serves, and who may move it."""

    name: str = Field(description="name of the CheckpointHead.")
    mode: Mode = Field(description="Track or Pin.")
    checkpoint: str = Field(description="Checkpoint that mode Pin asks for.")
    on_pin: OnPin = Field(description="what the run does while it is pinned.")
    current: str = Field(description="Checkpoint that it serves; empty for the base.")
    target: str = Field(description="Checkpoint that is accepted, perhaps not served yet.")
    term: int = Field(description="term of the head.")
    moved_by: str = Field(description="who last edited what it asks for; empty if unknown.")
    owner: str = Field(description="what applies it from Git; empty if Git does not own it.")
    may_move: bool = Field(description="whether the caller may update it.")
    history: list[MoveView] = Field(description="moves, newest first.")
    conditions: list[ConditionView] = Field(description="its conditions.")


class TreeView(View):
    """A model with its tree."""

    model: ModelView = Field(description="the model.")
    conditions: list[ConditionView] = Field(description="conditions of the model.")
    checkpoints: list[CheckpointView] = Field(description="nodes, parents before their children.")
    heads: list[HeadView] = Field(description="heads; the one that the slug serves comes first.")
    metrics: list[str] = Field(description="names of the metrics that any of its nodes bears.")


class Line(View):
    """A metric over a branch; all lists are of equal length."""

    branch: str = Field(description="name of the branch.")
    checkpoints: list[str] = Field(description="Checkpoints, from the one that it grew from.")
    runs: list[str] = Field(description="TrainingRun of each; empty for an import.")
    steps: list[int] = Field(description="step of each.")
    values: list[float] = Field(description="value of each.")
    low: list[float | None] = Field(description="low end of its 95 % interval, where it has one.")
    high: list[float | None] = Field(description="high end of its 95 % interval.")


class Series(View):
    """A metric over the tree."""

    metric: str = Field(description="name of the metric.")
    lines: list[Line] = Field(description="branches that have it, main first.")


class RunView(View):
    """A run and what it waits for."""

    name: str = Field(description="name of the TrainingRun.")
    driver: str = Field(description="Runner or Client.")
    step: int = Field(description="steps taken.")
    steps: int = Field(description="steps in all.")
    remaining_seconds: int | None = Field(description="estimate of what is left; null if unknown.")
    waits_for: str = Field(description="a sentence about what it waits for.")
    conditions: list[ConditionView] = Field(description="its conditions.")


class RunList(View):
    """The runs of a model that the caller may get."""

    runs: list[RunView] = Field(description="runs, newest first.")


class RolloutPage(View):
    """Kept rollouts of a Checkpoint's step."""

    checkpoint: str = Field(description="name of the Checkpoint.")
    total: int = Field(description="records that are kept.")
    next: int | None = Field(description="what to ask for as after; null at the end.")
    records: list[dict[str, JsonValue]] = Field(
        description="records, as espalier rollouts show --json prints them."
    )


class HeadRequest(View):
    """What a head is to ask for."""

    mode: Mode = Field(description="Track, or Pin with checkpoint.")
    checkpoint: str = Field(
        default="", max_length=63, description="Checkpoint that mode Pin holds; empty for Track."
    )
    on_pin: OnPin = Field(
        default="Branch", description="what the run does while it is pinned; none for Track."
    )


class Changed(View):
    """Data of the stream's event ``changed``."""

    what: Literal["models", "model"] = Field(
        description="models: the list changed; model: the tree, a head or a run of it did."
    )
