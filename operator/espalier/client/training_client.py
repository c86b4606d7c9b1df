"""TrainingClient: train and sample one model from Python, with or without asyncio.

The verbs and their arguments are those of HUD's ``hud.TrainingClient``, so that a script moves over
by changing its import. What is added: no call is ever applied twice, and every call can be waited
for again, by this process or by the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from espalier.api.objective import Objective
from espalier.api.run.advantage import Estimator, Scale
from espalier.api.wire.batch_left import BatchLeft
from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardBackwardResult,
    ForwardRequest,
    ForwardResult,
)
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import TrainerState
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.client import answers
from espalier.client.answers import CommittedStep
from espalier.client.call import Call
from espalier.client.custom_loss import CustomLoss, weights_of
from espalier.client.kept_rollouts import Given
from espalier.client.reading import ReadingClient
from espalier.client.rollout import Rollout


class BuiltinLoss(StrEnum):
    """The losses that ``forward_backward`` knows; ``available_losses`` asks the trainer."""

    CROSS_ENTROPY = "cross_entropy"
    IMPORTANCE_SAMPLING = "importance_sampling"
    PPO = "ppo"
    CISPO = "cispo"
    DRO = "dro"
    GSPO = "gspo"


# A trace id of a rollout that was sampled through the gateway, its tokens, or a Rollout of a Job.
Trajectory = str | TrajectoryPayload | Rollout


class TrainingClient(ReadingClient):
    """One model: sampled and trained under one name.

    Every method returns a Call at once: ``await`` it, or ask it for its ``result()``. Calls are
    sent in the order of submission, each after the one before it was answered; a call submitted
    before an earlier failure could be known is not sent.

    Args:
        model: its slug: the model's name, or ``namespace/name``.
        base_url: of the gateway; default: the environment's ESPALIER_GATEWAY_URL.
        token: a Kubernetes or gateway token, the file that holds it, or a function; default: the
            environment's ESPALIER_TOKEN, or the file that ESPALIER_TOKEN_FILE names.
        patience: for how long to try, and how often.
        journal: a directory that keeps every command until it is answered, so that a process
            started after a crash can ``resume`` what this one sent.
    """

    def forward_backward(
        self,
        trajectories: Sequence[Trajectory],
        *,
        loss_fn: str = "importance_sampling",
        loss_fn_config: Mapping[str, float] | None = None,
        group_size: int | None = None,
        reward_scale: float = 1.0,
        num_substeps: int = 1,
        temperature: float | None = None,
        advantage_estimator: Estimator = "GroupMean",
        advantage_scale: Scale = "None",
        objective: Objective | None = None,
    ) -> Call[ForwardBackwardResult]:
        """Adds the gradient of a built-in loss to those that the next ``optim_step`` takes.

        Args:
            trajectories: what to learn from.
            loss_fn: one of ``available_losses``.
            loss_fn_config: its settings; what the loss does not know is refused. ``epsilon`` of ppo
                clips the ratio to 1 - epsilon and 1 + epsilon.
            group_size: consecutive trajectories that make a group, unless they carry group ids;
                without either all of them are one.
            reward_scale: factor of all advantages.
            num_substeps: HUD's: in how many parts the batch is computed; gradients are the same.
            temperature: of the samples that say none themselves, as a Rollout's do; 1 if None.
            advantage_estimator: GroupMean is the reward minus its group's mean, LeaveOneOut the
                reward minus the mean of the others, None the reward.
            advantage_scale: GroupStd divides by the standard deviation of the group's rewards,
                BatchStd by that of all rewards of the call.
            objective: how losses add up, and what is corrected or added; Tinker's sum if None.
        """
        request = ForwardBackwardRequest(
            inputs=_inputs(trajectories),
            loss_fn=loss_fn,
            loss_fn_config=dict(loss_fn_config) if loss_fn_config else None,
            group_size=group_size,
            reward_scale=reward_scale,
            num_substeps=num_substeps,
            temperature=temperature,
            advantage_estimator=advantage_estimator,
            advantage_scale=advantage_scale,
            **(objective or Objective()).model_dump(),
        )
        call = self._command("forward-backward", request, answers.FORWARD_BACKWARD)
        self._kept.learn(call, trajectories)
        return call

    def optim_step(
        self,
        *,
        learning_rate: float,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_clip_norm: float = 0.0,
        metrics: Mapping[str, float] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
        cursor: Mapping[str, Any] | None = None,
        rollouts: Given | None = None,
        batch: BatchLeft | None = None,
    ) -> Call[CommittedStep]:
        """One AdamW step, its checkpoint, and the head's move to it.

        ``metrics`` are of the step and kept with its checkpoint. ``measured`` are figures of
        checkpoints that are there already, by name, such as ``eval/reward/mean``: gates of heads
        and ``keepBest`` go by them. The rewards of trajectories that the gateway sampled are
        figures of the checkpoint that sampled them by themselves. ``cursor`` is what ``state``
        gives back to a process that goes on from it. The result comes when the slug serves the new
        weights, or will not (``promotion``: Served, Pinned, Gated, Timeout).

        ``rollouts`` are kept beside the checkpoint, where ``espalier rollouts show`` finds them: a
        Batch, rollouts, or records of your own. Unless given they are those of the batches that
        the gradients came from, failed ones included. ``batch`` is what is left to learn from for
        the steps that follow: ``batch()`` gives it back until the next step, or a rollback.
        """
        records = self._kept.records(rollouts)
        request = OptimStepRequest(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_clip_norm=grad_clip_norm,
            metrics=dict(metrics or {}),
            measured={name: dict(found) for name, found in (measured or {}).items()},
            cursor=dict(cursor or {}),
            rollouts=records,
            keep_rollouts=rollouts is None or bool(records),
            batch=batch,
        )
        call = self._command("optim-step", request, answers.STEP)
        self._kept.step(call)
        return call

    def step(
        self,
        trajectories: Sequence[Trajectory],
        *,
        learning_rate: float,
        loss_fn: str = "importance_sampling",
        loss_fn_config: Mapping[str, float] | None = None,
        group_size: int | None = None,
        reward_scale: float = 1.0,
        num_substeps: int = 1,
        weight_decay: float = 0.0,
        temperature: float | None = None,
        advantage_estimator: Estimator = "GroupMean",
        advantage_scale: Scale = "None",
        objective: Objective | None = None,
        rollouts: Given | None = None,
    ) -> Call[CommittedStep]:
        """``forward_backward``, and ``optim_step`` if that succeeds."""
        gradients = self.forward_backward(
            trajectories,
            loss_fn=loss_fn,
            loss_fn_config=loss_fn_config,
            group_size=group_size,
            reward_scale=reward_scale,
            num_substeps=num_substeps,
            temperature=temperature,
            advantage_estimator=advantage_estimator,
            advantage_scale=advantage_scale,
            objective=objective,
        )
        committed = self.optim_step(
            learning_rate=learning_rate, weight_decay=weight_decay, rollouts=rollouts
        )

        async def both() -> CommittedStep:
            await gradients
            return await committed

        return self._run(both)

    def forward(
        self,
        trajectories: Sequence[Trajectory],
        *,
        group_size: int | None = None,
        reward_scale: float = 1.0,
        temperature: float | None = None,
        reference: str | None = None,
    ) -> Call[ForwardResult]:
        """Log-probs of the trajectories' tokens, for a loss that the caller computes.

        ``temperature`` as for ``forward_backward``. ``reference`` is ``base`` or the name of a
        Checkpoint, whose log-probs come along as ``reference_logprobs``; LoRA only.
        """
        request = ForwardRequest(
            inputs=_inputs(trajectories),
            group_size=group_size,
            reward_scale=reward_scale,
            temperature=temperature,
            reference=reference,
        )
        return self._command("forward", request, answers.FORWARD)

    def backward(
        self,
        forward_id: str,
        weights: Sequence[Sequence[float]],
        *,
        metrics: Mapping[str, float] | None = None,
    ) -> Call[ForwardBackwardResult]:
        """Adds the gradients of a loss: ``weights[d][t] = -dLoss/dlogprob`` of a ``forward``."""
        request = BackwardRequest(
            forward_id=forward_id,
            weights=[list(row) for row in weights],
            metrics=dict(metrics or {}),
        )
        return self._command("backward", request, answers.FORWARD_BACKWARD)

    def forward_backward_custom(
        self,
        trajectories: Sequence[Trajectory],
        loss_fn: CustomLoss,
        *,
        group_size: int | None = None,
        reward_scale: float = 1.0,
        temperature: float | None = None,
        reference: str | None = None,
    ) -> Call[ForwardBackwardResult]:
        """Adds the gradients of any loss of the log-probs; needs torch.

        ``loss_fn(data, logprobs) -> (loss, metrics)`` gets the datums and one tensor of log-probs
        for each, (T,), and runs on a thread of its own. ``temperature`` and ``reference`` as for
        ``forward``.
        """
        seen = self.forward(
            trajectories,
            group_size=group_size,
            reward_scale=reward_scale,
            temperature=temperature,
            reference=reference,
        )

        async def learn() -> ForwardBackwardResult:
            forward = await seen
            weights, metrics = await weights_of(loss_fn, forward.data)
            return await self.backward(forward.forward_id, weights, metrics=metrics)

        call = self._run(learn)
        self._kept.learn(call, trajectories)
        return call

    def zero_grad(self) -> Call[TrainerState]:
        """Drops the gradients that were added since the last ``optim_step``."""
        self._kept.drop()
        return self._command("zero-grad", None, answers.STATE)

    def compute_logprobs(self, sequences: Sequence[Sequence[int]]) -> Call[list[list[float]]]:
        """The log-prob of every token but the first of each sequence, by the trainer's weights."""
        inputs = [
            TrajectoryPayload(
                samples=[
                    TrajectorySample(
                        prompt_token_ids=[tokens[0]],
                        output_token_ids=list(tokens[1:]),
                        output_logprobs=[0.0] * (len(tokens) - 1),
                    )
                ],
                reward=0.0,
            )
            for tokens in sequences
        ]
        seen = self.forward(inputs)

        async def logprobs() -> list[list[float]]:
            return [datum.logprobs for datum in (await seen).data]

        return self._run(logprobs)


def _inputs(trajectories: Sequence[Trajectory]) -> list[str | TrajectoryPayload]:
    return [item.payload() if isinstance(item, Rollout) else item for item in trajectories]
