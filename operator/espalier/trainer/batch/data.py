"""Turns trajectories on the wire into datums: tokens, sampler log-probs and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.wire.gradients import TrajectoriesRequest
from espalier.api.wire.trajectory import TrajectoryPayload
from espalier.trainer.batch.estimates import estimates
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.sample_checks import (
    check_anchors,
    check_sample,
    check_token_values,
    prompt_of,
    temperature_of,
)
from espalier.trainer.problems import invalid


@dataclass(frozen=True)
class Datum:
    """One assistant turn: every output token is a target, no prompt token is.

    Log-probs are of the policy at ``temperature``, which is ``assumed`` if nobody named it.
    ``token_advantages`` replace ``advantage`` token by token; ``token_weights`` are 1 if empty. Of
    a ``masked`` datum no token is trained. ``anchor_logprobs`` are the policy's own from when it
    first saw the tokens, ``reference_logprobs`` the reference policy's; empty if not known.

    ``targets`` are what is predicted at each output token, where that is not the token itself;
    ``counted`` says of each whether metrics count it. ``field`` is where the request has it.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    sampling_logprobs: tuple[float, ...]
    advantage: float
    reward: float
    trajectory: int
    group: int | None
    token_advantages: tuple[float, ...] = ()
    token_weights: tuple[float, ...] = ()
    temperature: float = 1.0
    assumed: bool = False
    masked: bool = False
    anchor_logprobs: tuple[float, ...] = ()
    reference_logprobs: tuple[float, ...] = ()
    targets: tuple[int, ...] = ()
    counted: tuple[bool, ...] = ()
    field: str = ""

    @property
    def predicted(self) -> tuple[int, ...]:
        """The token whose log-prob is computed, for each output token."""
        return self.targets or self.output

    @property
    def trained(self) -> tuple[bool, ...]:
        """Whether metrics count it, for each output token."""
        return self.counted or (not self.masked,) * len(self.output)

    @property
    def family(self) -> tuple[str, int]:
        """Identifies the datums that share a prompt: a group, or a trajectory without a group."""
        if self.group is None:
            return "trajectory", self.trajectory
        return "group", self.group

    @property
    def advantages(self) -> tuple[float, ...]:
        """One per output token."""
        return self.token_advantages or (self.advantage,) * len(self.output)

    @property
    def weights(self) -> tuple[float, ...]:
        """One per output token."""
        return self.token_weights or (1.0,) * len(self.output)


def trained_advantages(data: Sequence[Datum]) -> tuple[float, ...]:
    """The advantage of each trajectory, or those of its tokens where it brings one for each."""
    by_token = [value for datum in data for value in datum.token_advantages]
    of_whole = {d.trajectory: d.advantage for d in data if not d.token_advantages}
    return (*of_whole.values(), *by_token)


def datums(
    request: TrajectoriesRequest, limits: Limits, *, policies_compared: bool, weighted: bool = False
) -> list[Datum]:
    """One datum per sample, in request order; raises 422 naming the field that does not fit.

    ``policies_compared``: the loss needs the sampler's log-prob of every output token.
    ``weighted``: the loss reads per-token weights.
    """
    trajectories = _inline(request.inputs)
    groups = _groups(trajectories, request.group_size)
    estimated = estimates(trajectories, groups, request)
    group_of = {index: number for number, group in enumerate(groups or []) for index in group}
    check_anchors(trajectories, request)
    result = []
    for index, trajectory in enumerate(trajectories):
        for turn, sample in enumerate(trajectory.samples):
            field = f"inputs[{index}].samples[{turn}]"
            prompt = prompt_of(sample, field)
            check_sample(sample, prompt, field, limits, policies_compared=policies_compared)
            check_token_values(
                sample, trajectory, field, policies_compared=policies_compared, weighted=weighted
            )
            temperature = temperature_of(
                sample, request.temperature, field, policies_compared=policies_compared
            )
            result.append(
                Datum(
                    prompt=prompt,
                    output=tuple(sample.output_token_ids),
                    sampling_logprobs=tuple(sample.output_logprobs),
                    advantage=estimated[index],
                    reward=trajectory.reward,
                    trajectory=index,
                    group=group_of.get(index),
                    token_advantages=tuple(sample.advantages or ()),
                    token_weights=tuple(sample.weights or ()),
                    temperature=1.0 if temperature is None else temperature,
                    assumed=temperature is None,
                    masked=sample.masked,
                    anchor_logprobs=tuple(sample.anchor_logprobs or ()),
                    field=field,
                )
            )
    return result


def _inline(inputs: Sequence[str | TrajectoryPayload]) -> list[TrajectoryPayload]:
    for index, item in enumerate(inputs):
        if isinstance(item, str):
            raise invalid(
                f"inputs[{index}]",
                f"{item!r} is a trace id, and this trainer keeps no traces",
                "send the trajectory inline: sample through the gateway with "
                "return_token_ids and logprobs, so that the client holds tokens",
            )
    return [item for item in inputs if isinstance(item, TrajectoryPayload)]


def _groups(
    trajectories: list[TrajectoryPayload], group_size: int | None
) -> list[list[int]] | None:
    """The positions of each group's inputs, in order of first inputs; None without groups."""
    named = [trajectory.group_id is not None for trajectory in trajectories]
    if any(named):
        return _named_groups(trajectories, named, group_size)
    if group_size is None:
        return None
    count = len(trajectories)
    if count % group_size:
        raise invalid(
            "group_size",
            f"{count} inputs do not divide into groups of {group_size}",
            "send whole groups: group_size consecutive inputs each",
        )
    return [list(range(start, start + group_size)) for start in range(0, count, group_size)]


def _named_groups(
    trajectories: list[TrajectoryPayload], named: list[bool], group_size: int | None
) -> list[list[int]]:
    if not all(named):
        raise invalid(
            f"inputs[{named.index(False)}].group_id",
            "is missing while other inputs have one",
            "give every input its group's id, or none and group_size",
        )
    groups: dict[str, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        groups.setdefault(trajectory.group_id or "", []).append(index)
    for name, members in groups.items():
        if group_size is not None and len(members) != group_size:
            raise invalid(
                f"inputs[{members[0]}].group_id",
                f"group {name!r} has {len(members)} inputs, and group_size is {group_size}",
                "send whole groups, or leave group_size out",
            )
    return list(groups.values())
