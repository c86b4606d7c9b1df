"""The input of a run's decision: its objects, its servers, its runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHead
from espalier.api.trainablemodel import TrainableModel
from espalier.api.trainingrun import TrainingRun
from espalier.api.wire.commits import Tokens
from espalier.api.wire.problem import Problem
from espalier.core.checkpoints import run_tokens
from espalier.core.gitowner import GitOwner
from espalier.core.pods.blockers import Blocker
from espalier.core.pods.pods import JobState, Pod
from espalier.core.pods.queued import Wait
from espalier.core.run.runner_needs import Lack


@dataclass(frozen=True)
class RunView:
    """All that a run's decision depends on.

    ``checkpoints`` are those of this very run, in the order that they were made.
    ``assigned``: the trainer acknowledged this run under the head's term. ``counted`` are the
    steps of the run whose commits have been dealt with; ``trained`` those that the trainer has on
    record, asked after the runner had ended, None: not known. ``problem`` is what it reports.
    ``rollouts`` are the rollout pods that have started. ``pod`` is what of the run a runner's pod
    would be made of, ``lack`` what it needs and is not there, ``blocker`` why the runner's Job
    gets no pod, ``queued`` why it waits for a quota. ``quiet`` are the seconds since the trainer's
    last call, None: not asked.
    ``tokens`` are those of the commits heard of, ``gpus`` the GPUs of the pods that a run uses in
    its turn, ``images`` the digests of theirs by role. ``owner`` is who brings the run from Git,
    asked once it has ended and may expire.
    """

    run: TrainingRun
    model: TrainableModel | None
    head: CheckpointHead | None
    siblings: Sequence[TrainingRun]
    checkpoints: Sequence[Checkpoint] = ()
    assigned: bool = False
    problem: Problem | None = None
    runner: JobState | None = None
    runner_pods: Sequence[Pod] = ()
    counted: int = 0
    trained: int | None = None
    rollouts: int = 1
    pod: str = ""
    lack: Lack | None = None
    blocker: Blocker | None = None
    queued: Wait | None = None
    quiet: float | None = None
    tokens: Tokens = run_tokens.NONE
    gpus: int = 0
    images: Mapping[str, str] = field(default_factory=dict)
    owner: GitOwner | None = None

    @property
    def heard(self) -> Sequence[Tokens]:
        """The counts of the run's tokens that there are: of its commits, and on its Checkpoints."""
        on_last = [run_tokens.recorded(checkpoint) for checkpoint in self.checkpoints[-1:]]
        return [self.tokens, *on_last]

    @property
    def driven(self) -> bool:
        """Whether a runner of ours drives the run, not somebody's script."""
        return self.run.spec.driver == "Runner"

    @property
    def rollouts_wanted(self) -> int:
        """How many rollouts the model asks for."""
        return self.model.spec.rollout.replicas if self.model is not None else 0
