"""TrainingRun: a bounded number of optimizer steps on a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.loss import Loss
from espalier.api.meta import (
    METRIC_NAME_CHARS,
    METRICS_MOST,
    Condition,
    Metric,
    NonNegativeDecimal,
    ObjectMeta,
    ObjectRef,
    PositiveDecimal,
    Type,
    UnitDecimal,
    cel,
    list_map,
)
from espalier.api.podtemplate import PodTemplate
from espalier.api.taskset import Taskset


class Optimizer(Type):
    """AdamW; every value is applied at each step."""

    beta1: UnitDecimal = Field(default="0.9", description='beta1 of AdamW, for example "0.9".')
    beta2: UnitDecimal = Field(default="0.95", description='beta2 of AdamW, for example "0.95".')
    epsilon: PositiveDecimal = Field(
        default="1e-8", description='epsilon of AdamW, for example "1e-8".'
    )
    weight_decay: NonNegativeDecimal = Field(
        default="0", description='weightDecay, decoupled, for example "0".'
    )
    gradient_clip_norm: NonNegativeDecimal = Field(
        default="0", description='gradientClipNorm bounds the global norm; "0" is off.'
    )


class Advantage(Type):
    """How rewards become advantages."""

    source: Literal["Estimated", "Precomputed"] = Field(
        default="Estimated",
        description="source is Estimated (reward minus the mean of its group) or Precomputed "
        "(the task or client gives it).",
    )
    scale: Literal["None", "GroupStd"] = Field(
        default="None",
        description="scale is None, or GroupStd to divide by the group's standard deviation.",
    )


class GroupFilter(Type):
    """What happens to groups that cannot teach."""

    zero_variance: Literal["Keep", "Drop"] = Field(
        default="Drop",
        description="zeroVariance says whether groups of equal rewards are kept or dropped; "
        "they are counted either way.",
    )
    truncated: Literal["Keep", "Drop"] = Field(
        default="Keep",
        description="truncated says whether groups in which a completion was cut at "
        "sampling.maxTokens are kept or dropped whole: cut, it earns what an unfinished answer "
        "earns. completion/truncated_fraction counts them either way.",
    )


class Sampling(Type):
    """How completions are sampled."""

    temperature: PositiveDecimal = Field(
        default="1.0", description='temperature above 0, a quoted decimal such as "1.0".'
    )
    max_tokens: int = Field(
        default=256, ge=1, le=131072, description="maxTokens of one completion."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(
        default=None,
        description="stop holds strings that end a completion beside the tokenizer's "
        "end-of-sequence token; their tokens are trained on, their text is not scored.",
        min_length=1,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(
        default=None,
        description="stopTokenIds are tokens that end a completion as well, for a base whose chat "
        "template closes turns with another token than the tokenizer's end of sequence.",
        min_length=1,
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description="chatTemplateKwargs go to the base's chat template, such as "
        "enable_thinking: false for Qwen3. A name that the template does not use ends the run.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "maxProperties": 32},
    )

    def request(self) -> dict[str, Any]:
        """The fields of a chat completion's request but for temperature and ``max_tokens``."""
        fields = {
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "chat_template_kwargs": self.chat_template_kwargs,
        }
        return {name: value for name, value in fields.items() if value is not None}


class KeepBest(Type):
    """The checkpoints with the highest values of a metric."""

    metric: str = Field(
        description="metric of a Checkpoint's status, for example reward/mean; the highest values "
        "are the best.",
        min_length=1,
        max_length=METRIC_NAME_CHARS,
    )
    count: int = Field(ge=1, le=1000, description="count of the checkpoints to keep.")


class CheckpointPolicy(Type):
    """Which checkpoints of a run are kept; what no rule keeps and nothing needs is deleted."""

    keep_last: int | None = Field(
        default=None, ge=1, le=100000, description="keepLast keeps this many of the newest."
    )
    keep_every_steps: int | None = Field(
        default=None,
        ge=1,
        le=10000000,
        description="keepEverySteps keeps those whose step is a multiple of it.",
    )
    keep_best: KeepBest | None = Field(
        default=None, description="keepBest keeps those with the highest values of a metric."
    )


class RunnerSpec(Type):
    """How the runner's pod runs."""

    template: PodTemplate | None = Field(default=None, description="template of the runner's pod.")


class TrainingRunSpec(Type):
    """The desired run. Only Git or a user writes it."""

    model_ref: ObjectRef = Field(
        description="modelRef names the TrainableModel to train. Immutable.",
        json_schema_extra=cel(("self == oldSelf", "modelRef is immutable: create another run")),
    )
    driver: Literal["Runner", "Client"] = Field(
        default="Runner",
        description="driver is Runner (the loop runs in the cluster) or Client (an SDK drives it). "
        "Immutable.",
        json_schema_extra=cel(("self == oldSelf", "driver is immutable: create another run")),
    )
    loss: Loss = Field(
        description="loss that turns log-probs and advantages into gradients.",
    )
    group_size: int = Field(
        default=8, ge=1, le=1024, description="groupSize is the number of completions per task."
    )
    groups_per_step: int = Field(
        default=8, ge=1, le=4096, description="groupsPerStep is the number of tasks per step."
    )
    learning_rate: PositiveDecimal = Field(
        description='learningRate, a quoted decimal such as "1e-4". Takes effect at the next step.'
    )
    steps: int = Field(
        ge=1, le=10000000, description="steps of the optimizer that the run takes; may grow."
    )
    optimizer: Optimizer = Field(
        default_factory=Optimizer, description="optimizer is AdamW with these values."
    )
    advantage: Advantage = Field(
        default_factory=Advantage, description="advantage says how rewards become advantages."
    )
    group_filter: GroupFilter = Field(
        default_factory=GroupFilter, description="groupFilter drops groups that cannot teach."
    )
    sampling: Sampling = Field(default_factory=Sampling, description="sampling of completions.")
    taskset: Taskset | None = Field(
        default=None, description="taskset of the Runner; unused by driver Client."
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

    model_config = ConfigDict(
        json_schema_extra=cel(
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
                "self.loss.name == oldSelf.loss.name",
                "loss.name is immutable: create another run",
                ".loss.name",
            ),
            (
                "self.advantage.source != 'Estimated' || self.groupSize >= 2",
                "advantage.source Estimated needs groupSize of 2 or more, or every advantage is 0",
                ".groupSize",
            ),
        )
    )


class Applied(Type):
    """The hyperparameters of the latest step."""

    learning_rate: str = Field(default="", description="learningRate applied.", max_length=32)
    group_size: int = Field(default=0, ge=0, description="groupSize applied.")


class Progress(Type):
    """How far the run is."""

    percent: int = Field(default=0, ge=0, le=100, description="percent of the steps done.")
    estimated_remaining_seconds: int | None = Field(
        default=None, ge=0, description="estimatedRemainingSeconds at the present pace."
    )


class TrainingRunStatus(Type):
    """The observed run. Only the operator writes it."""

    conditions: list[Condition] = Field(
        default_factory=list,
        description="conditions are Ready, Reconciling, Stalled, Suspended, Succeeded, "
        "RewardsInformative, LogprobsAligned and RolloutsHealthy.",
        max_length=12,
        json_schema_extra=list_map("type"),
    )
    observed_generation: int = Field(
        default=-1, description="observedGeneration last reconciled; -1 before the first pass."
    )
    step: int = Field(default=0, ge=0, description="step counts the optimizer steps of this run.")
    start_time: str | None = Field(
        default=None,
        description="startTime of training.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )
    completion_time: str | None = Field(
        default=None,
        description="completionTime of the last step.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )
    epoch: int = Field(default=0, ge=0, description="epoch of the head that the run trains under.")
    latest_checkpoint_ref: ObjectRef | None = Field(
        default=None, description="latestCheckpointRef is the newest Checkpoint of the run."
    )
    applied: Applied | None = Field(default=None, description="applied hyperparameters.")
    metrics: list[Metric] = Field(
        default_factory=list,
        description="metrics of the latest step.",
        max_length=METRICS_MOST,
        json_schema_extra=list_map("name"),
    )
    progress: Progress | None = Field(default=None, description="progress of the run.")
    idle_since: str | None = Field(
        default=None,
        description="idleSince is when the trainer was freed for want of calls "
        "(spec.trainer.idleSeconds of the model); unset once one takes it back.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )
    woken_for: str | None = Field(
        default=None,
        description="wokenFor is the idleSince that a call has ended. The gateway writes it.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )


class TrainingRun(BaseModel):
    """A TrainingRun as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)
