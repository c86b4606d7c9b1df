"""TrainingRun: a bounded number of optimizer steps on a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.loss import Loss
from espalier.api.meta import (
    METRICS_MOST,
    Condition,
    MeasuredMetric,
    Metric,
    NonNegativeDecimal,
    ObjectMeta,
    ObjectRef,
    PositiveDecimal,
    Type,
    UnitDecimal,
    cel,
    decimal,
    list_map,
    newly,
    without_default,
)
from espalier.api.metric_names import MEASURED_MOST
from espalier.api.podtemplate import PodTemplate
from espalier.api.taskset import Taskset

# Fields of Optimizer that HUD's wire calls otherwise.
_OPTIMIZER_ON_WIRE = {"epsilon": "eps", "gradient_clip_norm": "grad_clip_norm"}


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

    def config(self) -> dict[str, float]:
        """The optimizer's fields of the wire's optim-step, by their names there."""
        return {
            _OPTIMIZER_ON_WIRE.get(name, name): decimal(getattr(self, name))
            for name in type(self).model_fields
        }


class Advantage(Type):
    """How rewards become advantages."""

    source: Literal["Estimated", "Precomputed"] = Field(
        default="Estimated",
        description="source is Estimated (reward minus the mean of its group) or, with driver "
        "Client alone, Precomputed (its script gives one for each token).",
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

    metric: MeasuredMetric = Field(
        description="metric that is measured of a Checkpoint itself, reward/... or eval/...; the "
        "highest values are the best. Those that are not measured yet stay as well.",
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
                " ? self.advantage.source != 'Estimated' : self.driver == 'Client')",
                "advantage.source Estimated needs groupSize of 2 or more, or every advantage is 0",
                ".groupSize",
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
        description="conditions are Ready, Reconciling, Stalled, Suspended, Succeeded, TasksReady "
        "(for tasks in a ConfigMap), RewardsInformative, LogprobsAligned and RolloutsHealthy.",
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
    term: int = Field(default=0, ge=0, description="term of the head that the run trains under.")
    latest_checkpoint_ref: ObjectRef | None = Field(
        default=None, description="latestCheckpointRef is the newest Checkpoint of the run."
    )
    applied: Applied | None = Field(default=None, description="applied hyperparameters.")
    metrics: list[Metric] = Field(
        default_factory=list,
        description="metrics of the latest step, such as rollout/reward/mean.",
        max_length=METRICS_MOST + MEASURED_MOST,
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
