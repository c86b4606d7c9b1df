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
    list_map,
    newly,
    without_default,
)
from espalier.api.podtemplate import PodTemplate
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
from espalier.api.run.sampling import Sampling
from espalier.api.run.schedule import Schedule
from espalier.api.run.status import TrainingRunStatus
from espalier.api.run.taskset import Taskset, is_played
from espalier.api.run.timeouts import Timeouts
from espalier.api.run.tracking import Tracking


class RunnerSpec(Type):
    """How the runner's pod runs."""

    template: PodTemplate | None = Field(default=None, description="template of the runner's pod.")
    backoff_limit: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="backoffLimit is how often the runner is started again after it failed, before "
        "the run fails; 20 if unset. Eviction, preemption and the loss of a node do not count.",
    )


# Whether an evaluation e has its tasks from the generator that the run has its own from.
_SAME_GENERATOR = " || ".join(
    f"(has(e.taskset.{name}) && has(self.taskset.{name}))"
    for name in ("reasoningGym", "game2048", "calculator", "openEnv", "python", "verifiers")
)

# What the runner does and a client's script does itself, by field.
_OF_RUNNER = {
    "rolloutLog": "a client's script says with each step what it keeps",
    "tracking": "a client's script reports by its own trackers, such as those of a Fit",
}

_NOT_CUSTOM = "!has(self.loss) || self.loss.name != 'Custom'"

_STEPS_OF_BATCH = "(has(self.batch) ? self.batch.minibatches * self.batch.epochs : 1)"


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
        for field in (
            "groupsPerStep",
            "batch",
            "groupFilter",
            "schedule",
            "evaluation",
            "rewards",
            "rewardAggregation",
            "overlong",
            "lengthPenalty",
            "limits",
            "rolloutErrors",
            "timeouts",
            "seed",
        )
    ]
    found["x-kubernetes-validations"] += [
        newly(
            f"{client} || !has(self.{field})",
            f"{field} belongs to driver Runner: {remedy}",
            f".{field}",
            unless=f"has(before.{field})",
        )
        for field, remedy in _OF_RUNNER.items()
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
        "succeeded or failed; of one that Argo CD or Flux brings from Git, and would make again, "
        "the runner's Job alone. Checkpoints stay. Never if unset.",
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
                "!has(self.rewards) || !has(self.taskset)"
                " || (!has(self.taskset.onError) && !has(self.taskset.scoreTimeoutSeconds))",
                "taskset.onError and taskset.scoreTimeoutSeconds are of a run without rewards: "
                "remove them, and set onError and timeoutSeconds in each of rewards",
                ".rewards",
            ),
            (
                f"!has(self.taskset) || !{is_played('self.taskset')} || !has(self.rewards)",
                "taskset is played over turns, and its environment pays a rollout: remove rewards",
                ".rewards",
            ),
            (
                f"!has(self.taskset) || !{is_played('self.taskset')} || (!has(self.lengthPenalty)"
                " && (!has(self.overlong) || self.overlong.policy != 'SoftPenalty'))",
                "lengthPenalty and overlong.policy SoftPenalty measure one completion, and taskset "
                "is played over turns: remove them, or choose another policy",
                ".lengthPenalty",
            ),
            (
                "!has(self.rewardAggregation) || self.rewardAggregation != 'NormalizeThenSum'"
                " || has(self.rewards)",
                "rewardAggregation NormalizeThenSum needs rewards: declare them, or remove it",
                ".rewardAggregation",
            ),
            (
                "!has(self.rewardAggregation) || self.rewardAggregation != 'NormalizeThenSum'"
                " || !has(self.advantage) || self.advantage.scale == 'None'",
                "rewardAggregation NormalizeThenSum divides each reward by its deviation already: "
                "remove advantage.scale, or set SumThenNormalize",
                ".rewardAggregation",
            ),
            (
                "!has(self.rolloutErrors) || !has(self.rolloutErrors.minGroupSize)"
                " || self.rolloutErrors.minGroupSize"
                " <= (has(self.groupSize) ? self.groupSize : 8)",
                "rolloutErrors.minGroupSize must not be above groupSize, which is 8 if unset",
                ".rolloutErrors.minGroupSize",
            ),
            (
                "!has(self.rolloutErrors) || !has(self.rolloutErrors.minGroupSize)"
                " || !has(self.rewardAggregation)"
                " || self.rewardAggregation != 'NormalizeThenSum'",
                "rolloutErrors.minGroupSize leaves rollouts out of a group, and rewardAggregation "
                "NormalizeThenSum compares whole groups: remove it, or set SumThenNormalize",
                ".rolloutErrors.minGroupSize",
            ),
            (
                "!has(self.overlong) || !has(self.overlong.bufferTokens)"
                " || self.overlong.bufferTokens"
                " <= (has(self.sampling) ? self.sampling.maxTokens : 256)",
                "overlong.bufferTokens must not be above sampling.maxTokens, which is 256 if unset",
                ".overlong.bufferTokens",
            ),
            (
                "!has(self.overlong) || self.overlong.policy != 'Mask' || !has(self.loss)"
                " || self.loss.name != 'cross_entropy'",
                "overlong.policy Mask needs a loss with advantages: cross_entropy has none, so "
                "choose Drop or another loss",
                ".overlong.policy",
            ),
            (
                "self.driver == 'Runner' || !has(self.runner)",
                "runner belongs to driver Runner: a client's script is no pod of ours",
                ".runner",
            ),
            (
                "!has(self.schedule) || !has(self.schedule.minibatches) || (has(self.groupsPerStep)"
                " ? self.groupsPerStep : 8) % self.schedule.minibatches == 0",
                "schedule.minibatches must divide groupsPerStep (8 if unset)",
                ".schedule",
            ),
            (
                "!has(self.groupFilter) || !has(self.groupFilter.minGroups)"
                " || self.groupFilter.minGroups <= (has(self.groupsPerStep)"
                " ? self.groupsPerStep : 8)",
                "groupFilter.minGroups must not be above groupsPerStep (8 if unset)",
                ".groupFilter",
            ),
            (
                "!has(self.groupFilter) || !has(self.groupFilter.zeroVariance)"
                " || self.groupFilter.zeroVariance != 'Resample' || !has(self.schedule)"
                " || !has(self.schedule.mode) || self.schedule.mode == 'Synchronous'",
                "groupFilter.zeroVariance Resample needs schedule.mode Synchronous: under the "
                "others later groups are under way already; choose Drop",
                ".groupFilter",
            ),
            (
                "!has(self.evaluation) || !has(self.taskset) || self.evaluation.all(e,"
                f" !({_SAME_GENERATOR}) || e.taskset.seed != self.taskset.seed)",
                "evaluation[].taskset.seed must differ from taskset.seed: a run would be judged by "
                "the tasks that it trains on",
                ".evaluation",
            ),
            (
                "!has(self.evaluation) || self.evaluation.all(e,"
                " (!has(e.taskset.configMap) || (has(self.taskset) && has(self.taskset.configMap)"
                " && e.taskset.configMap.name == self.taskset.configMap.name))"
                " && (!has(e.taskset.persistentVolumeClaim) || (has(self.taskset)"
                " && has(self.taskset.persistentVolumeClaim)"
                " && e.taskset.persistentVolumeClaim.claimName"
                " == self.taskset.persistentVolumeClaim.claimName))"
                " && (!has(e.taskset.image) || (has(self.taskset) && has(self.taskset.image)"
                " && e.taskset.image.reference == self.taskset.image.reference)))",
                "evaluation[].taskset names another ConfigMap, claim or image than taskset, which "
                "alone is mounted: put the held-out tasks beside the run's",
                ".evaluation",
            ),
            (
                "!has(self.advantage) || !has(self.advantage.scale)"
                " || self.advantage.scale != 'BatchStd' || !has(self.schedule)"
                " || !has(self.schedule.mode) || self.schedule.mode != 'Streaming'",
                "advantage.scale BatchStd needs all rewards of a step at once, and schedule.mode "
                "Streaming adds gradients before they are there: choose GroupStd or Synchronous",
                ".advantage",
            ),
            (
                f"{_STEPS_OF_BATCH} == 1 || !has(self.schedule)"
                " || self.schedule.mode != 'Streaming'",
                "batch takes several steps with groups that are all there, and schedule.mode "
                "Streaming adds gradients before they are: remove batch, or choose another mode",
                ".batch",
            ),
            (
                f"{_STEPS_OF_BATCH} == 1 || !has(self.schedule)"
                " || !has(self.schedule.maxStalenessSteps)"
                f" || self.schedule.maxStalenessSteps >= {_STEPS_OF_BATCH} - 1",
                "the last of batch.minibatches * batch.epochs steps is staler than "
                "schedule.maxStalenessSteps: raise that, or take fewer steps with a batch",
                ".batch",
            ),
            (
                "!has(self.batch) || self.batch.minibatches == 1 || !has(self.advantage)"
                " || self.advantage.scale != 'BatchStd'",
                "advantage.scale BatchStd needs all rewards of a batch at once, and each of "
                "batch.minibatches is sent by itself: choose GroupStd, or use epochs alone",
                ".batch",
            ),
            (
                "!has(self.batch) || self.batch.minibatches"
                " * (has(self.groupsPerStep) ? self.groupsPerStep : 8) <= 4096",
                "groupsPerStep * batch.minibatches, the groups of a batch, must not be above 4096",
                ".batch",
            ),
            (
                "self.steps >= oldSelf.steps",
                "steps may grow but never shrink: suspend the run to stop it early",
                ".steps",
            ),
            (
                "!has(self.learningRateSchedule) || has(self.learningRate)",
                "learningRateSchedule needs learningRate, which it starts from: give a quoted "
                'decimal, such as "1e-5"',
                ".learningRateSchedule",
            ),
            (
                "!has(self.learningRateSchedule)"
                " || self.learningRateSchedule.warmupSteps < self.steps",
                "learningRateSchedule.warmupSteps must be below steps, or no step takes "
                "learningRate: lower it or raise steps",
                ".learningRateSchedule.warmupSteps",
            ),
            (
                "!has(self.learningRateSchedule) || !has(self.learningRate)"
                " || double(self.learningRateSchedule.minimum) <= double(self.learningRate)",
                "learningRateSchedule.minimum must not be above learningRate: lower it",
                ".learningRateSchedule.minimum",
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
                f"{_NOT_CUSTOM} || self.driver == 'Runner'",
                "loss Custom belongs to driver Runner: remove loss, and let the client's script "
                "call forward_backward_custom",
                ".loss",
            ),
            (
                f"{_NOT_CUSTOM} || !has(self.offPolicyCorrection)"
                " || self.offPolicyCorrection.mode == 'None'",
                "the function of loss Custom gets the sampler's log-probs and corrects by them "
                "itself: remove offPolicyCorrection",
                ".offPolicyCorrection",
            ),
            (
                f"{_NOT_CUSTOM} || !has(self.kl) || (double(self.kl.coefficient) == 0.0"
                " && double(self.kl.discount) == 0.0 && !has(self.kl.estimator))",
                "the function of loss Custom gets reference_logprobs and weighs them itself: leave "
                "reference alone in kl",
                ".kl",
            ),
            (
                f"{_NOT_CUSTOM} || !has(self.schedule) || self.schedule.mode != 'Streaming'",
                "loss Custom is of a whole step, and schedule.mode Streaming adds gradients before "
                "all of it is there: choose another mode",
                ".schedule",
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
