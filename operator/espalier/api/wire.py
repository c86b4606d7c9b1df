"""The trainer protocol and the rollout control protocol, as JSON.

The train routes speak HUD's wire format (``/v1/models/{slug}/train/*``), so that its clients work
unmodified: their responses carry exactly HUD's fields, because those clients refuse any other.
What we add travels in optional request fields and in headers.

Headers
    Idempotency-Key: ``<session>/<seq>``; a command is applied once per key, and a resent key gets
        the first result. Same key with another body: 422. Without it a resend is recognised by
        what was delivered: the gateway sends Espalier-Client, the trainer answers with the key that
        it gave the command, and the gateway posts that key to ``/train/delivered`` once the client
        has the answer.
    Espalier-Term: the term of the head that the caller trains under; another live term: 409.
    Espalier-Checkpoint: on the gateway's answer to a completion: the name of the Checkpoint that
        sampled it, or base.
    Espalier-Checkpoint-Digest: on the trainer's answer to optim-step: digest of the checkpoint.
    Espalier-Declared: from the gateway, what the run in Git binds the command to (Declared).
    Espalier-Promotion: on the gateway's answer to optim-step: Served, Pinned, Gated or Timeout.
Errors are ``{"detail": text, "reason": CamelCase, "remedy": text}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator

from espalier.api.meta import OptimizerState
from espalier.api.objective import Correction, Kl, Objective
from espalier.api.run.advantage import Estimator, Scale
from espalier.api.run.loss import Aggregation, ImportanceLevel, RatioAnchor
from espalier.api.sampled import CHUNK

IDEMPOTENCY_KEY = "Idempotency-Key"
TERM = "Espalier-Term"
PROMOTION = "Espalier-Promotion"
# Of an optim-step's answer: seconds that it waited until the promotion was decided.
PROMOTED_AFTER = "Espalier-Promotion-Seconds"
CLIENT = "Espalier-Client"
CHECKPOINT = "Espalier-Checkpoint"
CHECKPOINT_DIGEST = "Espalier-Checkpoint-Digest"
DECLARED = "Espalier-Declared"


class Wire(BaseModel):
    """Base of the wire types: frozen, snake_case, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Problem(Wire):
    """An error as sent to a client."""

    detail: str
    reason: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """Detail and remedy as one text, as conditions and messages show them."""
        return f"{self.detail}. {self.remedy}" if self.remedy else self.detail


# --- train routes (HUD) -------------------------------------------------------------------------

# A boolean or a text is no number here; the first wrong element of a list ends its reading, so
# that refusing a large body costs no more than reading it.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Wholes = Annotated[list[Whole], Field(fail_fast=True)]
Reals = Annotated[list[Real], Field(fail_fast=True)]


def _strict_json(value: Any) -> Any:
    """What JSON cannot say is refused here, where its place is known, and not when it is stored."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number")
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for place, child in children:
        try:
            _strict_json(child)
        except ValueError as error:
            raise ValueError(f"at {place}: {error}") from None
    return value


# A client's own JSON object, kept as it is.
Document = Annotated[dict[str, Any], AfterValidator(_strict_json)]


class TrajectorySample(Wire):
    """One assistant turn: tokens in, tokens out, and the sampler's log-prob of each token out.

    From ``weights`` on: ours, not HUD's. Weights and advantages are one value per output token, of
    any sign. ``temperature`` (0: greedy) and ``shifted_by`` say how the sample was drawn, as
    ``sampled.Sampled``; HUD's client sends the same back as the one entry of ``prompt_chunks`` that
    the gateway gave it. ``checkpoint`` is the name of the Checkpoint that sampled it, where that is
    known. Of a ``masked`` sample no token is trained or counted, and the reward of its trajectory
    stays in the mean of its group. ``anchor_logprobs`` are the trainer's own of the output tokens
    from when it first saw them (of a forward before the batch's first step), for ``ratio_anchor``
    Trainer.
    """

    prompt_token_ids: Wholes | None = None
    prompt_chunks: list[dict[str, Any]] | None = None
    output_token_ids: Wholes
    output_logprobs: Reals = Field(default_factory=list)
    weights: Reals | None = None
    advantages: Reals | None = None
    checkpoint: Annotated[str, Field(max_length=63)] | None = None
    temperature: Real | None = Field(default=None, ge=0)
    shifted_by: list[str] = Field(default_factory=list)
    masked: Annotated[bool, Strict()] = False
    anchor_logprobs: Reals | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_chunk(cls, given: Any) -> Any:
        """Takes the gateway's entry out of ``prompt_chunks``, into the fields that it fills."""
        chunks = given.get("prompt_chunks") if isinstance(given, dict) else None
        if not isinstance(chunks, list) or len(chunks) != 1 or not isinstance(chunks[0], dict):
            return given
        if chunks[0].get("type") != CHUNK:
            return given
        said = {name: value for name, value in chunks[0].items() if name != "type"}
        unknown = sorted(set(said) - {"temperature", "shifted_by"})
        if unknown:
            raise ValueError(f"prompt_chunks[0].{unknown[0]} is unknown")
        for name, value in said.items():
            if given.get(name) not in (None, value):
                raise ValueError(f"{name} is {given[name]}, and prompt_chunks[0] says {value}")
        return {**given, **said, "prompt_chunks": None}


class TrajectoryPayload(Wire):
    """A rollout: its turns and one reward. ``advantage`` replaces the estimate when precomputed.

    ``group_id`` (ours, not HUD's) names the group; without it ``group_size`` inputs in a row are
    one. Either every input of a request has one, or none.
    """

    samples: Annotated[list[TrajectorySample], Field(fail_fast=True)] = Field(min_length=1)
    reward: Real
    trace_id: str | None = None
    group_id: Annotated[str, Field(min_length=1)] | None = None
    advantage: Real | None = None


class TrajectoriesRequest(Wire):
    """Trajectories, which a command scores or learns from.

    A group is what shares an id, or ``group_size`` in a row; without either all inputs are one
    group, as in HUD. ``temperature`` is that of the samples that name none; without it 1, HUD's.
    """

    inputs: Annotated[list[str | TrajectoryPayload], Field(fail_fast=True)] = Field(min_length=1)
    group_size: Whole | None = Field(default=None, ge=1)
    reward_scale: Real = 1.0
    temperature: Real | None = Field(default=None, gt=0)


class ForwardRequest(TrajectoriesRequest):
    """Log-probs without gradients.

    ``reference`` (ours, not HUD's) asks for those of a reference policy as well: ``base``, which is
    the policy with its adapter switched off, or the name of a Checkpoint. LoRA only.
    """

    reference: Annotated[str, Field(min_length=1, max_length=63)] | None = None


class ForwardBackwardRequest(TrajectoriesRequest, Objective):
    """Adds the gradient of a built-in loss to the accumulated ones.

    ``num_substeps`` is HUD's number of parts to compute the batch in. Gradients are sums, so every
    value gives the same result; the trainer sizes the parts for its device.

    Ours: the fields of ``Objective``, and how rewards become advantages, as in
    ``core.advantages``; HUD's is the reward minus the mean of its group.
    """

    loss_fn: str = "importance_sampling"
    loss_fn_config: dict[str, Real] | None = None
    num_substeps: Whole = Field(default=1, ge=1)
    advantage_estimator: Estimator = "GroupMean"
    advantage_scale: Scale = "None"


class ForwardBackwardResult(Wire):
    """Metrics are named ``name:reduction``; ``loss:sum`` is always there."""

    metrics: dict[str, float]
    num_datums: int


class DatumTensors(Wire):
    """One datum: equal-length lists over its target positions.

    ``reference_logprobs`` (ours, not HUD's) are there where the request named a reference: HUD's
    client refuses a field that it does not know.
    """

    reward: float
    traj_idx: int
    group_idx: int | None = None
    logprobs: list[float]
    sampling_logprobs: list[float]
    mask: list[float]
    reference_logprobs: list[float] | None = Field(default=None, exclude_if=lambda v: v is None)


class ForwardResult(Wire):
    """``forward_id`` names the datums for a later backward."""

    forward_id: str
    data: list[DatumTensors]


class BackwardRequest(Wire):
    """``weights[d][t] = -dC/dlogprob`` of a loss that the client computed."""

    forward_id: str
    weights: Annotated[list[Reals], Field(fail_fast=True)]
    metrics: dict[str, Real] = Field(default_factory=dict)


class TasksetUsed(Wire):
    """The tasks that a step was sampled from: digest of all of them, how many, and their seed."""

    digest: Annotated[str, Field(pattern=r"^sha256:[a-f0-9]{64}$")]
    size: Whole = Field(ge=1, le=2**31 - 1)
    seed: Whole = Field(ge=0, le=2**31 - 1)


class BatchLeft(Wire):
    """What is left of a batch of several optimizer steps, for the steps after one of them.

    ``parts`` are those of the epoch under way, in their order; ``order`` draws those of the next
    one, of ``epochs``. ``next`` counts the steps, from 0: it is the place of the one to take.
    ``taken`` are those that were taken: one without a gradient is left out. A part that no step
    needs any more is empty. ``metrics`` are of the batch's samples.
    """

    parts: Annotated[list[list[TrajectoryPayload]], Field(fail_fast=True, min_length=1)]
    epochs: Whole = Field(ge=1)
    next: Whole = Field(ge=0)
    order: str = ""
    taken: Whole = Field(default=0, ge=0)
    metrics: dict[str, Real] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_there(self) -> BatchLeft:
        if self.next >= len(self.parts) * self.epochs:
            raise ValueError(f"next is {self.next}, and nothing is left")
        last_epoch = self.next >= len(self.parts) * (self.epochs - 1)
        needed = self.parts[self.next % len(self.parts) :] if last_epoch else self.parts
        if not all(needed):
            raise ValueError("parts holds an empty one that a step is yet to take")
        return self


class Held(Wire):
    """What is left of the batch that the trainer's latest step came from, if anything is."""

    batch: BatchLeft | None = None


class OptimStepRequest(Wire):
    """One AdamW step, its checkpoint and promotion. From ``grad_clip_norm`` on: ours, not HUD's.

    ``metrics`` are of the step; ``measured`` are of checkpoints of the model, by name: those that
    were sampled for the step, or evaluated before it. Where ``rollouts`` is empty the trainer keeps
    those that it can make out itself, unless ``keep_rollouts`` is false. ``batch`` is kept with the
    checkpoint, and given back while the run stands on it.
    """

    learning_rate: Real = Field(gt=0)
    beta1: Real = Field(default=0.9, ge=0, lt=1)
    beta2: Real = Field(default=0.95, ge=0, lt=1)
    eps: Real = Field(default=1e-8, gt=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    grad_clip_norm: Real = Field(default=0.0, ge=0)
    metrics: dict[str, Real] = Field(default_factory=dict)
    measured: dict[str, dict[str, Real]] = Field(default_factory=dict)
    cursor: Document = Field(default_factory=dict)
    rollouts: list[Document] = Field(default_factory=list)
    taskset: TasksetUsed | None = None
    keep_rollouts: bool = True
    batch: BatchLeft | None = None


class OptimStepResult(Wire):
    """``checkpoint_id`` is the Checkpoint's name; paths are directories on the volume."""

    step: int
    checkpoint_id: str
    sampler_path: str
    state_path: str
    model: str


class EvaluationRequest(Wire):
    """What an evaluation found of a checkpoint; metrics by their names after ``eval/<name>/``."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=30)]
    tasks: Whole = Field(ge=1)
    metrics: dict[Annotated[str, Field(pattern=r"^[a-z0-9_@]{1,24}$")], Real] = Field(
        min_length=1, max_length=12
    )


class LossList(Wire):
    """The losses that forward-backward takes."""

    losses: list[str]


class DeclaredOptimizer(Wire):
    """All settings of AdamW."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


class RateSchedule(Wire):
    """How the learning rate goes from its highest, ``Declared.learning_rate``, over ``steps``."""

    type: Literal["Constant", "Linear", "Cosine"]
    warmup_steps: int
    minimum: float
    steps: int


class Declared(Wire):
    """What the commands of a run's client must say; what is None, the client decides."""

    run: str
    loss_fn: str | None = None
    loss_fn_config: dict[str, float] = Field(default_factory=dict)
    aggregation: Aggregation | None = None
    aggregation_constant: int | None = None
    importance_level: ImportanceLevel | None = None
    ratio_anchor: RatioAnchor | None = None
    correction: Correction | None = None
    kl: Kl | None = None
    entropy_coefficient: float | None = None
    learning_rate: float | None = None
    learning_rate_schedule: RateSchedule | None = None
    optimizer: DeclaredOptimizer | None = None
    advantage_source: Literal["Estimated", "Precomputed"] | None = None
    advantage_estimator: Estimator | None = None
    advantage_scale: Scale | None = None
    group_size: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None


# --- trainer control (operator only) and state ---------------------------------------------------


class Assignment(Wire):
    """Who trains what from where: starts a trainer and re-bases a running one. Idempotent.

    A term above the trainer's re-bases it on ``base`` (empty: a fresh adapter), dropping
    accumulated gradients and, with ``optimizer_state`` Reset, Adam's moments of ``base``; the same
    term keeps its position; a lower term is refused (409).
    """

    term: int = Field(ge=1)
    branch: str
    base: str = ""
    base_name: str = ""
    base_step: int = Field(default=0, ge=0)
    optimizer_state: OptimizerState = "Keep"
    run: str


class Tokens(Wire):
    """Tokens of the completions that were sampled, and of those that losses ran over."""

    sampled: int = Field(default=0, ge=0)
    trained: int = Field(default=0, ge=0)


class Commit(Wire):
    """One committed optimizer step, as the operator turns it into a Checkpoint.

    ``run_tokens`` are those of its run up to it, over all branches. ``stored``: whether its bytes
    were on the volume when the trainer last started. ``measured``: figures of checkpoints that are
    there already, by name, which came with the step.
    """

    index: int = Field(ge=1)
    name: str
    model: str
    run: str
    step: int = Field(ge=1)
    run_step: int = Field(ge=1)
    branch: str
    term: int
    parent: str
    parent_name: str
    digest: str
    size_bytes: int
    lora_rank: int
    learning_rate: float
    group_size: int
    loss: str
    metrics: dict[str, float]
    measured: dict[str, dict[str, float]] = Field(default_factory=dict)
    created: str
    run_tokens: Tokens = Field(default_factory=Tokens)
    taskset: TasksetUsed | None = None
    stored: bool = True


class CommitPage(Wire):
    """Commits after a given index, oldest first.

    ``problem`` holds training up; ``warnings`` say how it runs, and hold nothing up.
    """

    commits: Annotated[list[Commit], Field(fail_fast=True)]
    problem: Problem | None = None
    warnings: Annotated[list[Problem], Field(fail_fast=True)] = Field(default_factory=list)


class TrainerState(Wire):
    """Where the trainer stands: what a runner resumes from."""

    model: str
    run: str
    term: int
    branch: str
    step: int
    run_step: int
    digest: str
    checkpoint: str
    pending: int
    cursor: dict[str, Any]
    problem: Problem | None = None
    warnings: Annotated[list[Problem], Field(fail_fast=True)] = Field(default_factory=list)


class Usage(Wire):
    """Seconds since the trainer's last call ended; 0 while one is under way."""

    quiet_seconds: float = Field(ge=0)


# --- rollout control (operator only) --------------------------------------------------------------


class ServeRequest(Wire):
    """The adapters that a rollout pod must have loaded to be ready; none means the base alone."""

    adapters: Annotated[list[str], Field(fail_fast=True)]


class Served(Wire):
    """What a rollout pod has loaded and verified, by adapter name.

    ``base``: whether the base is served too. Full weights take its place.
    """

    adapters: Annotated[list[str], Field(fail_fast=True)]
    ready: bool
    base: bool = True


# --- importers ----------------------------------------------------------------------------------

IMPORT_PROGRESS = "/progress"
# Where a sampler answers with the rollouts that are kept of a checkpoint's step.
KEPT_ROLLOUTS = "/espalier/v1/rollouts"
Bytes = Annotated[int, Strict(), Field(ge=0, le=2**62)]


class ImportState(Wire):
    """How far an import is."""

    done_bytes: Bytes
    total_bytes: Bytes
    bytes_per_second: Bytes
