"""The status of a TrainingRun."""

from __future__ import annotations

from pydantic import Field

from espalier.api.evaluated import EVALUATIONS_MOST, EvaluationResult
from espalier.api.meta import METRICS_MOST, Condition, Digest, Metric, ObjectRef, Type, list_map
from espalier.api.metric_names import MEASURED_MOST
from espalier.api.saved import SAVES_MOST, Save


class Applied(Type):
    """The hyperparameters of the latest step."""

    learning_rate: str = Field(default="", description="learningRate applied.", max_length=32)
    group_size: int = Field(default=0, ge=0, description="groupSize applied.")


class Progress(Type):
    """How far the run is."""

    percent: int = Field(default=0, ge=0, le=100, description="percent of the steps done.")
    estimated_remaining_seconds: int | None = Field(
        default=None,
        ge=0,
        description="estimatedRemainingSeconds at the pace of the last steps, as of the latest "
        "change of this status; estimatedCompletionTime does not grow old.",
    )
    estimated_completion_time: str | None = Field(
        default=None,
        description="estimatedCompletionTime of the last step at the pace of the last steps. While "
        "a step takes longer than those it is put off at least every 10 s.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )


class TasksetStatus(Type):
    """The tasks of the latest step."""

    digest: Digest = Field(
        description="digest of the tasks in their order, their prompts and answers; of generated "
        "ones of what generates them, the version of reasoning-gym included."
    )
    size: int = Field(ge=1, description="size is how many tasks there are.")
    seed: int = Field(ge=0, description="seed of the tasks and of their order.")


class ImageUsed(Type):
    """The image of a role's pods."""

    role: str = Field(description="role is trainer, rollout or runner.", max_length=16)
    digest: Digest = Field(description="digest of the image that its latest pod runs.")


class Provenance(Type):
    """What a run is made from."""

    config_digest: Digest = Field(
        description="configDigest of the run's spec as last reconciled, in canonical JSON."
    )
    model_digest: Digest | None = Field(
        default=None, description="modelDigest of the base that the model is trained from."
    )
    git_revision: str | None = Field(
        default=None,
        description="gitRevision that the run was applied from, where its annotation "
        "espalier.dev/git-revision says it.",
        max_length=128,
    )
    images: list[ImageUsed] = Field(
        default_factory=list,
        description="images that trainer, rollouts and runner run, or ran last.",
        max_length=8,
        json_schema_extra=list_map("role"),
    )


class Usage(Type):
    """What a run has used, over restarts, rollbacks and suspensions."""

    sampled_tokens: int = Field(
        default=0,
        ge=0,
        description="sampledTokens of the completions of committed steps: completion/tokens_total "
        "of each, or what was trained on where a client does not report it.",
        json_schema_extra={"format": "int64"},
    )
    trained_tokens: int = Field(
        default=0,
        ge=0,
        description="trainedTokens that the losses of committed steps ran over.",
        json_schema_extra={"format": "int64"},
    )
    gpu_seconds: int = Field(
        default=0,
        ge=0,
        description="gpuSeconds: seconds times the GPUs of the pods of trainer, rollouts and "
        "runner, while the run has its turn; up to gpusSince.",
        json_schema_extra={"format": "int64"},
    )
    gpus: int = Field(
        default=0, ge=0, description="gpus that have counted to gpuSeconds since gpusSince."
    )
    gpus_since: str | None = Field(
        default=None,
        description="gpusSince is up to when gpuSeconds is counted; renewed every 60 s.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )


class BarrenRounds(Type):
    """Rounds of sampling that brought no step."""

    step: int = Field(ge=1, description="step of the run that they were sampled for.")
    rounds: int = Field(ge=1, description="rounds so far, told at the 1st, 2nd, 4th and so on.")
    reason: str = Field(max_length=64, description="reason is a CamelCase word.")
    message: str = Field(max_length=2048, description="message says why no group teaches.")


class TrainingRunStatus(Type):
    """The observed run. Only the operator writes it."""

    conditions: list[Condition] = Field(
        default_factory=list,
        description="conditions are Ready, Reconciling, Stalled, Suspended, Succeeded, TasksReady "
        "(for tasks and rewards in ConfigMaps), RewardsInformative, LogprobsAligned and "
        "RolloutsHealthy.",
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
    active_seconds: int = Field(
        default=0,
        ge=0,
        description="activeSeconds that the run has had its turn since startTime, up to "
        "activeSince; not while suspended, paused or waiting for another run.",
        json_schema_extra={"format": "int64"},
    )
    active_since: str | None = Field(
        default=None,
        description="activeSince is since when the run has its turn now; unset while it has not.",
        max_length=32,
        json_schema_extra={"format": "date-time"},
    )
    taskset: TasksetStatus | None = Field(
        default=None, description="taskset of the latest step, as driver Runner reports it."
    )
    provenance: Provenance | None = Field(
        default=None, description="provenance of what the run does now."
    )
    usage: Usage | None = Field(default=None, description="usage that budget limits.")
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
    barren_rounds: BarrenRounds | None = Field(
        default=None,
        description="barrenRounds are those that the latest step which had to wait for groups that "
        "teach waits or waited for. The gateway writes them.",
    )
    base_evaluations: list[EvaluationResult] = Field(
        default_factory=list,
        description="baseEvaluations are the figures of the base, which has no Checkpoint to bear "
        "them: of evaluations at Start, the latest of each name. The gateway writes them.",
        max_length=EVALUATIONS_MOST,
        json_schema_extra=list_map("name"),
    )
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
    saves: list[Save] = Field(
        default_factory=list,
        description="saves are the names of Tinker's clients for the model before its first step, "
        "of which there is no Checkpoint. The gateway writes them.",
        max_length=SAVES_MOST,
        json_schema_extra=list_map("path"),
    )
