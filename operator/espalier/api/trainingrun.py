"""TrainingRun: a bounded number of optimizer steps on a model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from espalier.api.meta import (
    ObjectMeta,
    ObjectRef,
    PositiveDecimal,
    Type,
    cel,
    list_map,
    without_default,
)
from espalier.api.run.advantage import Advantage
from espalier.api.run.alignment import LogprobAlignment
from espalier.api.run.batch import Batch
from espalier.api.run.budget import Budget
from espalier.api.run.checkpoint_policy import CheckpointPolicy
from espalier.api.run.evaluation import Evaluation
from espalier.api.run.group_filter import GroupFilter
from espalier.api.run.kl import Kl
from espalier.api.run.learning_rate_schedule import LearningRateSchedule
from espalier.api.run.limits import Limits
from espalier.api.run.loss import Loss
from espalier.api.run.off_policy_correction import OffPolicyCorrection
from espalier.api.run.optimizer import Optimizer
from espalier.api.run.overlong import LengthPenalty, Overlong
from espalier.api.run.rewards import Aggregation, Rewards
from espalier.api.run.rollout_errors import RolloutErrors
from espalier.api.run.rollout_log import RolloutLog
from espalier.api.run.rules.all_rules import run_rules
from espalier.api.run.runner import RunnerSpec
from espalier.api.run.sampling import Sampling
from espalier.api.run.schedule import Schedule
from espalier.api.run.status import TrainingRunStatus
from espalier.api.run.taskset import Taskset
from espalier.api.run.timeouts import Timeouts
from espalier.api.run.tracking import Tracking


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
    batch: Batch = Field(
        default_factory=Batch,
        description="batch of driver Runner says how many optimizer steps are taken with what was "
        "sampled at once; one if unset.",
        json_schema_extra=without_default,
    )
    learning_rate: PositiveDecimal | None = Field(
        default=None,
        description='learningRate, a quoted decimal such as "1e-4". Takes effect at the next step. '
        "Needed by driver Runner.",
    )
    learning_rate_schedule: LearningRateSchedule | None = Field(
        default=None,
        description="learningRateSchedule of the steps; without it each takes learningRate. A "
        "client is bound to the rate of the very step that it takes.",
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
    schedule: Schedule = Field(
        default_factory=Schedule,
        description="schedule of driver Runner says how sampling and training take turns; "
        "Synchronous if unset.",
        json_schema_extra=without_default,
    )
    taskset: Taskset | None = Field(
        default=None,
        description="taskset of the Runner; of driver Client what `espalier evaluate` asks.",
    )
    evaluation: list[Evaluation] = Field(
        default_factory=list,
        description="evaluation of the run's checkpoints by driver Runner on held-out tasks, "
        "beside training; figures are in the Checkpoints' status, for gates, keepBest and promote.",
        max_length=4,
        json_schema_extra=list_map("name"),
    )
    rewards: Rewards | None = Field(
        default=None,
        description="rewards of a completion, of driver Runner: their sum by weight counts. If "
        "unset, the taskset's own score is the one reward.",
    )
    reward_aggregation: Aggregation = Field(
        default="SumThenNormalize",
        description="rewardAggregation is SumThenNormalize (the weighted sum of the rewards is "
        "compared within its group, as advantage says; if unset) or NormalizeThenSum (each reward "
        "is brought to mean 0 and deviation 1 within its group, and the weighted sum of these is "
        "the advantage: GDPO).",
        json_schema_extra=without_default,
    )
    overlong: Overlong = Field(
        default_factory=Overlong,
        description="overlong says what completions are worth that reach sampling.maxTokens.",
        json_schema_extra=without_default,
    )
    length_penalty: LengthPenalty | None = Field(
        default=None, description="lengthPenalty makes long completions worth less."
    )
    limits: Limits = Field(
        default_factory=Limits,
        description="limits of driver Runner say how long the prompts of taskset and of evaluation "
        "may be; longer ones than the model's context are dropped if unset.",
        json_schema_extra=without_default,
    )
    rollout_errors: RolloutErrors | None = Field(
        default=None,
        description="rolloutErrors of driver Runner bounds failed rollouts and tries them again; "
        "given, its defaults bind as well. If unset, none is tried again and any number may fail.",
    )
    timeouts: Timeouts | None = Field(
        default=None, description="timeouts of the parts of a step, of driver Runner."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="seed of what driver Runner samples: each request has a seed of its own, of "
        "this one, of the task's place in the run, and of rollout, turn and try. Samples follow "
        "from it as far as the numbers of the server do, which depend on what is computed beside. "
        "Drawn by the server if unset. batch.epochs are drawn from it too, from 0 if unset. "
        "taskset.seed is of the tasks. Immutable.",
        json_schema_extra=cel(("self == oldSelf", "seed is immutable: create another run")),
    )
    checkpoint: CheckpointPolicy | None = Field(
        default=None,
        description="checkpoint says which of the run's Checkpoints are kept: those that any of "
        "its rules names, and always what heads, forks or resuming need. Every one if unset. "
        "Whether their bytes go as well says the model's deletionPolicy.",
    )
    budget: Budget | None = Field(
        default=None,
        description="budget of tokens and GPU time. Where it is used up, Succeeded is False with "
        "BudgetExhausted, and trainer and runner are freed; once it is raised the run goes on. The "
        "step under way is still taken.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=2147483647,
        description="activeDeadlineSeconds that the run may have its turn (status.activeSeconds). "
        "Then Succeeded is False with DeadlineExceeded, and trainer and runner are freed; once it "
        "is raised the run goes on.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=2147483647,
        description="ttlSecondsAfterFinished, after which the operator deletes a run that has "
        "succeeded or failed; of one that Argo CD, Flux or espalier dev would make again, the "
        "runner's Job alone. Checkpoints stay. Never if unset.",
    )
    rollout_log: RolloutLog | None = Field(
        default=None,
        description="rolloutLog of driver Runner says which rollouts a step keeps beside its "
        "checkpoint; all of them, without tokens, if unset.",
    )
    tracking: Tracking | None = Field(
        default=None,
        description="tracking of driver Runner shows the run in W&B, MLflow, TensorBoard or "
        "trackio.",
    )
    logprobs: LogprobAlignment = Field(
        default_factory=LogprobAlignment,
        description="logprobs says how far the log-probs of trainer and sampler may be apart, and "
        "what happens beyond.",
        json_schema_extra=without_default,
    )
    runner: RunnerSpec | None = Field(
        default=None, description="runner says how the pod of driver Runner runs."
    )
    suspend: bool | None = Field(
        default=None,
        description="suspend frees the run's trainer and runner; omit it in Git where others set "
        "it.",
    )

    @property
    def recipe(self) -> tuple[Loss, str]:
        """Loss and learning rate of a Runner's run; ValueError for one that leaves them open."""
        if self.loss is None or self.learning_rate is None:
            raise ValueError("a run with driver Runner has loss and learningRate")
        return self.loss, self.learning_rate

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's modules that the runner calls, as ``<ConfigMap>/<key>``: each once, in order.

        They are of python rewards and of a Custom loss.
        """
        found = {
            f"{ref.name}/{ref.key}"
            for ref in (one.python.config_map_ref for one in self.rewards or () if one.python)
        }
        if self.loss is not None and (custom := self.loss.custom_ref) is not None:
            found.add(f"{custom.name}/{custom.key}")
        return tuple(sorted(found))

    model_config = ConfigDict(json_schema_extra=run_rules())


class TrainingRun(BaseModel):
    """A TrainingRun as read from the API server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metadata: ObjectMeta
    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)
