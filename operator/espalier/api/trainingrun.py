"""TrainingRun: a bounded number of optimizer steps on a model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import (
    ObjectMeta,
    ObjectRef,
    PositiveDecimal,
    Type,
    cel,
    newly,
    without_default,
)
from espalier.api.podtemplate import PodTemplate
from espalier.api.run.advantage import Advantage
from espalier.api.run.checkpoint_policy import CheckpointPolicy
from espalier.api.run.group_filter import GroupFilter
from espalier.api.run.kl import Kl
from espalier.api.run.loss import Loss
from espalier.api.run.off_policy_correction import OffPolicyCorrection
from espalier.api.run.optimizer import Optimizer
from espalier.api.run.sampling import Sampling
from espalier.api.run.status import TrainingRunStatus
from espalier.api.run.taskset import Taskset


class RunnerSpec(Type):
    """How the runner's pod runs."""

    template: PodTemplate | None = Field(default=None, description="template of the runner's pod.")


def _rules(*rules: tuple[str, str] | tuple[str, str, str]) -> dict[str, Any]:
    """The rules of a run, those for what a client's commands do not show among them."""
    client = "self.driver == 'Runner'"
    unseen = ("stop", "stopTokenIds", "chatTemplateKwargs")
    held = " && ".join(f"!has(self.sampling.{field})" for field in unseen)
    found = cel(*rules)
    found["x-kubernetes-validations"] += [
        newly(
            f"{client} || !has(self.{field})",
            f"{field} belongs to driver Runner: a client's script chooses its batches",
            f".{field}",
            unless=f"has(before.{field})",
        )
        for field in ("groupsPerStep", "groupFilter")
    ]
    found["x-kubernetes-validations"].append(
        newly(
            "!has(self.loss) || self.loss.name != 'cross_entropy' || !has(self.advantage)"
            " || (self.advantage.estimator == 'GroupMean' && self.advantage.scale == 'None')",
            "cross_entropy reads no advantages: remove advantage, or choose another loss",
            ".advantage",
            unless="has(before.advantage) && before.advantage == self.advantage",
        )
    )
    found["x-kubernetes-validations"].append(
        newly(
            f"{client} || !has(self.sampling) || ({held})",
            f"{', '.join(unseen)} belong to driver Runner: a client's script says them when it "
            "samples",
            ".sampling",
            unless="has(before.sampling) && before.sampling == self.sampling",
        )
    )
    return found


class TrainingRunSpec(Type):
    """The desired run. Only Git or a user writes it."""

    model_ref: ObjectRef = Field(
        description="modelRef names the TrainableModel to train. Immutable.",
        json_schema_extra=cel(("self == oldSelf", "modelRef is immutable: create another run")),
    )
    driver: Literal["Runner", "Client"] = Field(
        default="Runner",
        description="driver is Runner (the loop runs in the cluster) or Client (an SDK drives it). "
        "A client decides what the run leaves out; what the run gives binds it, and a command that "
        "says something else is refused with 409. Immutable.",
        json_schema_extra=cel(("self == oldSelf", "driver is immutable: create another run")),
    )
    loss: Loss | None = Field(
        default=None,
        description="loss that turns log-probs and advantages into gradients. Needed by driver "
        "Runner.",
    )
    group_size: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="groupSize is the number of completions per task; 8 for driver Runner.",
        json_schema_extra=without_default,
    )
    groups_per_step: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="groupsPerStep is the number of tasks per step of driver Runner; 8 if unset.",
        json_schema_extra=without_default,
    )
    learning_rate: PositiveDecimal | None = Field(
        default=None,
        description='learningRate, a quoted decimal such as "1e-4". Takes effect at the next step. '
        "Needed by driver Runner.",
    )
    steps: int = Field(
        ge=1, le=10000000, description="steps of the optimizer that the run takes; may grow."
    )
    optimizer: Optimizer = Field(
        default_factory=Optimizer,
        description="optimizer is AdamW with these values; given, its defaults bind as well.",
        json_schema_extra=without_default,
    )
    advantage: Advantage = Field(
        default_factory=Advantage,
        description="advantage says how rewards become advantages; given, its defaults bind as "
        "well.",
        json_schema_extra=without_default,
    )
    off_policy_correction: OffPolicyCorrection = Field(
        default_factory=OffPolicyCorrection,
        description="offPolicyCorrection weighs or drops what the sampler drew from another "
        "distribution than the trainer's; given, its defaults bind as well.",
        json_schema_extra=without_default,
    )
    kl: Kl = Field(
        default_factory=Kl,
        description="kl holds the policy near a reference; given, its defaults bind as well.",
        json_schema_extra=without_default,
    )
    group_filter: GroupFilter = Field(
        default_factory=GroupFilter,
        description="groupFilter of driver Runner drops groups that cannot teach.",
        json_schema_extra=without_default,
    )
    sampling: Sampling = Field(
        default_factory=Sampling,
        description="sampling of completions; given, its defaults bind as well: a client trains on "
        "what was sampled at this temperature, of at most maxTokens.",
        json_schema_extra=without_default,
    )
    taskset: Taskset | None = Field(
        default=None,
        description="taskset of the Runner; of driver Client what `espalier evaluate` asks.",
    )
    checkpoint: CheckpointPolicy | None = Field(
        default=None,
        description="checkpoint says which of the run's Checkpoints are kept: those that any of "
        "its rules names, and always what heads, forks or resuming need. Every one if unset. "
        "Whether their bytes go as well says the model's deletionPolicy.",
    )
    runner: RunnerSpec | None = Field(
        default=None, description="runner says how the pod of driver Runner runs."
    )
    suspend: bool | None = Field(
        default=None,
        description="suspend frees the run's trainer and runner; omit it where Kueue manages it.",
    )

    @property
    def recipe(self) -> tuple[Loss, str]:
        """Loss and learning rate of a Runner's run; ValueError for one that leaves them open."""
        if self.loss is None or self.learning_rate is None:
            raise ValueError("a run with driver Runner has loss and learningRate")
        return self.loss, self.learning_rate

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                "self.driver != 'Runner' || has(self.loss)",
                "driver Runner needs loss: name one, such as importance_sampling",
                ".loss",
            ),
            (
                "self.driver != 'Runner' || has(self.learningRate)",
                'driver Runner needs learningRate: give a quoted decimal, such as "1e-5"',
                ".learningRate",
            ),
            (
                "self.driver != 'Runner' || has(self.taskset)",
                "driver Runner needs taskset: name a source, or set driver: Client",
                ".taskset",
            ),
            (
                "self.driver == 'Runner' || !has(self.runner)",
                "runner belongs to driver Runner: a client's script is no pod of ours",
                ".runner",
            ),
            (
                "self.steps >= oldSelf.steps",
                "steps may grow but never shrink: suspend the run to stop it early",
                ".steps",
            ),
            (
                "!has(self.loss) || !has(oldSelf.loss) || self.loss.name == oldSelf.loss.name",
                "loss.name is immutable: create another run",
                ".loss.name",
            ),
            (
                "!has(self.groupSize) || self.groupSize >= 2 || (has(self.advantage)"
                " ? self.advantage.source != 'Estimated' || self.advantage.estimator == 'None'"
                " : self.driver == 'Client')",
                "advantage.source Estimated needs groupSize of 2 or more, or every advantage is 0; "
                "or take the reward itself with advantage.estimator None",
                ".groupSize",
            ),
            (
                "!has(self.loss) || !has(self.offPolicyCorrection)"
                " || self.loss.ratioAnchor == 'Trainer'"
                " || !self.offPolicyCorrection.mode.endsWith('Truncate')",
                "with loss.ratioAnchor Sampler the loss applies the whole weight, and a Truncate "
                "would do so twice: choose a Mask, or set loss.ratioAnchor: Trainer",
                ".offPolicyCorrection.mode",
            ),
            (
                "!has(self.loss) || self.loss.name != 'cross_entropy'"
                " || !has(self.offPolicyCorrection) || self.offPolicyCorrection.mode == 'None'",
                "cross_entropy compares with no log-probs: remove offPolicyCorrection or choose "
                "another loss",
                ".offPolicyCorrection",
            ),
            (
                "!has(self.loss) || self.loss.name != 'cross_entropy' || !has(self.kl)"
                " || !has(self.kl.reference) || self.kl.placement == 'Loss'",
                "cross_entropy reads no advantages: set kl.placement: Loss, or choose another loss",
                ".kl.placement",
            ),
            (
                "self.driver != 'Runner' || !has(self.advantage)"
                " || self.advantage.source == 'Estimated'",
                "advantage.source Precomputed needs driver Client: no taskset gives advantages, "
                "so leave it Estimated or let a script train",
                ".advantage",
            ),
        )
    )


class TrainingRun(BaseModel):
    """A TrainingRun as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)
