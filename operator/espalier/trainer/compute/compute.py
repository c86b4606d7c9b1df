"""The policy in this process, as the engine commands it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from espalier.api.model.adapter import Adapter
from espalier.api.wire.problem import Problem
from espalier.api.wire.step import OptimStepRequest
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.losses import LossSpec
from espalier.trainer.compute import gradients, measure
from espalier.trainer.compute.adamw import (
    Moments,
    Proposal,
    fresh_moments,
    gradient_norm,
    propose,
    read_moments,
)
from espalier.trainer.compute.gradients import KeptForward
from espalier.trainer.compute.interface import Added, Batch, Compute, Referred
from espalier.trainer.compute.reference import NO_REFERENCE, load_reference
from espalier.trainer.compute.retry import attempt
from espalier.trainer.memory.planner import Cut, Cuts, Plan, TooLargeError, too_large
from espalier.trainer.policy.policy import Policy
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.shapes import Shapes
from espalier.trainer.volume.tensor_files import moment_names


class LocalCompute(Compute):
    """The policy in this process."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.planner = measure.measure(policy)
        self._kept: tuple[str, Cut, KeptForward] | None = None
        self._moments: Moments | None = None
        self.reference = NO_REFERENCE

    @property
    @override
    def limits(self) -> Limits:
        return self.policy.limits

    @property
    @override
    def adapter(self) -> Adapter:
        return self.policy.adapter

    @property
    @override
    def warnings(self) -> tuple[Problem, ...]:
        return (self.policy.warning,) if self.policy.warning else ()

    @property
    def moments(self) -> Moments:
        """Adam's state, made when it is first needed."""
        if self._moments is None:
            self._moments = fresh_moments(self.policy.own())
        return self._moments

    @override
    def admit(self, data: Sequence[Datum], spec: LossSpec | None = None, cuts: Cuts = ()) -> Batch:
        plan = self.plan(data, spec, cuts[0] if len(cuts) == 1 else None)
        return Batch(tuple(data), (tuple(range(len(data))),), (plan,))

    @override
    def score(self, batch: Batch, *, keep: str = "") -> list[list[float]]:
        self._kept = None
        (plan,) = batch.plans
        # Sharded weights are gathered layer by layer, so their graph cannot be kept.
        if keep and self.policy.sharding.size == 1 and self.planner.holds(plan):
            kept, cut = attempt(
                self.policy,
                plan,
                lambda cut: self.planner.cut(batch.data, cut),
                lambda rows: gradients.forward(self.policy, rows),
            )
            self._kept = keep, cut, kept
            return kept.logprobs(len(batch.data))
        return attempt(
            self.policy,
            plan,
            lambda cut: self.planner.cut(batch.data, cut),
            lambda rows: gradients.score(self.policy, rows),
        )[0]

    @override
    def hold_reference(self, checkpoint: Path | None) -> None:
        if checkpoint == self.reference.checkpoint:
            return
        free = self.planner.available + self.reference.size
        self.reference = NO_REFERENCE
        self.planner = replace(self.planner, available=free)
        if checkpoint is not None:
            self.reference = load_reference(self.policy, checkpoint, free)
            self.planner = replace(self.planner, available=free - self.reference.size)

    @override
    def refer(self, batch: Batch) -> Referred:
        self._kept = None
        (plan,) = batch.plans
        with self.policy.trained.replaced_by(self.reference.weights):
            logprobs, cut = attempt(
                self.policy,
                plan,
                lambda cut: self.planner.cut(batch.data, cut),
                lambda rows: gradients.score(self.policy, rows),
            )
        return Referred(logprobs, (cut,))

    @override
    def add_loss(
        self, batch: Batch, spec: LossSpec, group_size: int | None, *, tell: bool = False
    ) -> Added:
        self._kept = None
        logprobs_of: dict[int, Tensor] | None = {} if tell else None
        tally, cut = attempt(
            self.policy,
            batch.plans[0],
            lambda cut: self.plan(batch.data, spec, cut),
            lambda rows: gradients.add_loss(self.policy, rows, spec, group_size, logprobs_of),
        )
        told = tuple((logprobs_of or {})[index] for index in range(len(batch.data) if tell else 0))
        return Added(tally, (cut,), told)

    @override
    def add_weights(
        self,
        batch: Batch,
        weights: Sequence[Sequence[float]],
        *,
        given: dict[str, float],
        group_size: int | None,
        forward: str = "",
    ) -> Added:
        (plan,) = batch.plans
        graphs = self._take_kept(forward, plan.cut)
        tally, cut = attempt(
            self.policy,
            plan,
            lambda cut: self.planner.cut(batch.data, cut),
            lambda rows: gradients.add_weights(
                self.policy,
                rows,
                weights,
                given=given,
                group_size=group_size,
                kept=graphs.pop() if graphs else None,
            ),
        )
        return Added(tally, (cut,))

    @override
    def drop_gradients(self) -> None:
        self._kept = None
        self.policy.drop_gradients()

    @override
    def propose(self, values: OptimStepRequest, factor: float = 1.0) -> Proposal:
        sharding, own = self.policy.sharding, self.policy.own()
        square = torch.tensor(gradient_norm(own), dtype=torch.float64) ** 2
        norm = float(sharding.total(square).sqrt())
        proposal = propose(own, self.moments, values, norm, factor)
        elsewhere = int(sharding.total(torch.tensor(int(not proposal.finite))))
        return replace(proposal, finite=elsewhere == 0)

    @override
    def write(self, proposal: Proposal, directory: Path) -> None:
        tensors = self._tensors(proposal)
        try:
            tensor_files.write(directory, self.policy.files, tensors)
        finally:
            # Other ranks send every tensor whether or not the write failed, so receive them all.
            self._exhaust(tensors)
        self.policy.trained.write_configuration(directory)

    def give(self, proposal: Proposal) -> None:
        """Takes part in a write of rank 0."""
        self._exhaust(self._tensors(proposal))

    @override
    def install(self, proposal: Proposal) -> None:
        self.take(proposal.parameters)
        self._moments = proposal.moments

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Sets every trained weight, or this rank's part of it."""
        self._kept = None
        self.policy.load(weights)

    @override
    def check(self, shapes: Shapes) -> None:
        self.policy.check(shapes)

    @override
    def load(self, checkpoint: Path, moments: int | None) -> None:
        self.take(self.policy.part(tensor_files.weights_of(checkpoint)))
        self._moments = None
        if moments is not None:
            parts = self.policy.part(tensor_files.moments_of(checkpoint))
            self._moments = read_moments(parts, moments, self.policy.device)

    @override
    def reset(self) -> None:
        self._kept = None
        self.policy.reset()
        self._moments = None

    def _tensors(self, proposal: Proposal) -> Iterator[Tensor]:
        """The tensors of a checkpoint's files, in file order."""
        tensors_by_name, shapes = proposal.tensors(), self.policy.shapes
        whole = {**shapes} | {m: s for name, s in shapes.items() for m in moment_names([name])}
        names = (name for file in self.policy.files for name in file.tensors)
        return (self.policy.sharding.gather(tensors_by_name[name], whole[name]) for name in names)

    def _exhaust(self, tensors: Iterator[Tensor]) -> None:
        if self.policy.sharding.size > 1:
            deque(tensors, maxlen=0)

    def plan(self, data: Sequence[Datum], spec: LossSpec | None, cut: Cut | None) -> Plan:
        """The rows of a share, under a given cut or under one that fits."""
        no_grad, planner = gradients.without_gradient(data, spec), self.planner
        if spec is not None and spec.objective.entropy_coefficient:
            planner = planner.with_entropy()
        if cut is not None:
            return planner.cut(data, cut, no_grad)
        try:
            return planner.plan(data, self.policy.row_tokens, no_grad)
        except TooLargeError as error:
            raise too_large(error, data) from error

    def _take_kept(self, forward: str, cut: Cut) -> list[KeptForward]:
        """The kept forward of that name and cut, which is forgotten: its graph serves once."""
        kept, self._kept = self._kept, None
        return [kept[2]] if kept is not None and kept[:2] == (forward, cut) else []
