"""Turns trajectories on the wire into datums: tokens, sampler log-probs and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.api.wire.gradients import ForwardBackwardRequest, ForwardRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.batch.estimates import estimates
from espalier.trainer.problems import CommandError, invalid


@dataclass(frozen=True)
class Limits:
    """The base model's limits: token ids below ``vocabulary``, at most ``context`` tokens."""

    vocabulary: int
    context: int


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
    request: ForwardRequest, limits: Limits, *, policies_compared: bool, weighted: bool = False
) -> list[Datum]:
    """One datum per sample, in request order; raises 422 naming the field that does not fit.

    ``policies_compared``: the loss needs the sampler's log-prob of every output token.
    ``weighted``: the loss reads per-token weights.
    """
    trajectories = _inline(request.inputs)
    groups = _groups(trajectories, request.group_size)
    estimated = estimates(trajectories, groups, request)
    group_of = {index: number for number, group in enumerate(groups or []) for index in group}
    _check_anchors(trajectories, request)
    result = []
    for index, trajectory in enumerate(trajectories):
        for turn, sample in enumerate(trajectory.samples):
            field = f"inputs[{index}].samples[{turn}]"
            prompt = _prompt(sample, field)
            _check_sample(sample, prompt, field, limits, policies_compared=policies_compared)
            _check_token_values(
                sample, trajectory, field, policies_compared=policies_compared, weighted=weighted
            )
            temperature = _temperature(
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


def _check_anchors(trajectories: list[TrajectoryPayload], request: ForwardRequest) -> None:
    given = [s.anchor_logprobs is not None for t in trajectories for s in t.samples]
    read = isinstance(request, ForwardBackwardRequest) and request.ratio_anchor == "Trainer"
    if any(given) and not read:
        raise invalid(
            "anchor_logprobs",
            "are read with ratio_anchor Trainer alone",
            "leave them out, or send a forward-backward with ratio_anchor Trainer",
        )
    if any(given) and not all(given):
        raise invalid(
            "anchor_logprobs",
            "are missing in some samples and there in others",
            "send them with every sample of the request, or with none",
        )


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


def _prompt(sample: TrajectorySample, field: str) -> tuple[int, ...]:
    if sample.prompt_chunks is not None:
        raise invalid(
            f"{field}.prompt_chunks", "only text is trained", "send prompt_token_ids instead"
        )
    if not sample.prompt_token_ids:
        raise invalid(
            f"{field}.prompt_token_ids",
            "is empty, and the first output token needs a token before it",
            "send the prompt's tokens as the gateway returned them",
        )
    return tuple(sample.prompt_token_ids)


def _check_sample(
    sample: TrajectorySample,
    prompt: tuple[int, ...],
    field: str,
    limits: Limits,
    *,
    policies_compared: bool,
) -> None:
    outputs, logprobs = len(sample.output_token_ids), len(sample.output_logprobs)
    if outputs == 0:
        raise invalid(f"{field}.output_token_ids", "is empty", "leave out samples without output")
    if logprobs != outputs and (policies_compared or logprobs):
        raise invalid(
            f"{field}.output_logprobs",
            f"has {logprobs} values for {outputs} output tokens",
            "sample with logprobs and send the sampled token's log-prob for every output token",
        )
    for name, tokens in (
        ("prompt_token_ids", prompt),
        ("output_token_ids", sample.output_token_ids),
    ):
        if min(tokens) < 0 or max(tokens) >= limits.vocabulary:
            raise invalid(
                f"{field}.{name}",
                f"has token ids outside 0..{limits.vocabulary - 1}",
                "tokenize with the base model's own tokenizer",
            )
    if len(prompt) + outputs > limits.context:
        raise CommandError(
            422,
            "ContextTooLong",
            f"{field}: {len(prompt)} prompt and {outputs} output tokens exceed the base model's "
            f"context of {limits.context}",
            "shorten the prompt or lower sampling.maxTokens",
        )


def _temperature(
    sample: TrajectorySample, asked: float | None, field: str, *, policies_compared: bool
) -> float | None:
    """A sample's temperature; None if neither the sample nor the request names one."""
    own = sample.temperature
    if policies_compared and sample.shifted_by:
        raise CommandError(
            422,
            "DistributionShifted",
            f"{field}: it was sampled with {', '.join(sample.shifted_by)}, so its log-probs are of "
            "another distribution than the policy's",
            "sample for training with temperature alone, or train with cross_entropy, which reads "
            "no log-probs of the sampler",
        )
    if own == 0 and policies_compared:
        raise CommandError(
            422,
            "SampledGreedily",
            f"{field}.temperature is 0: a greedy sample was not drawn from the policy",
            "sample for training at a temperature above 0, or train with cross_entropy",
        )
    if own and asked is not None and own != asked:
        raise CommandError(
            422,
            "TemperatureContradicted",
            f"{field}.temperature is {own:g}, and the request's temperature is {asked:g}",
            "leave temperature out of the request: each sample is trained at its own",
        )
    return own or asked


def _check_token_values(
    sample: TrajectorySample,
    trajectory: TrajectoryPayload,
    field: str,
    *,
    policies_compared: bool,
    weighted: bool,
) -> None:
    for name, values in (
        ("weights", sample.weights),
        ("advantages", sample.advantages),
        ("anchor_logprobs", sample.anchor_logprobs),
    ):
        if values is not None and len(values) != len(sample.output_token_ids):
            raise invalid(
                f"{field}.{name}",
                f"has {len(values)} values for {len(sample.output_token_ids)} output tokens",
                "send one value per output token, or leave the field out",
            )
    if sample.weights is not None and not weighted:
        raise invalid(
            f"{field}.weights",
            "is not read by this loss",
            "fold weights into advantages, or use cross_entropy, gspo or forward and backward",
        )
    if sample.advantages is not None and not policies_compared:
        raise invalid(f"{field}.advantages", "is not read by cross_entropy", "send weights instead")
    if sample.advantages is not None and trajectory.advantage is not None:
        raise invalid(
            f"{field}.advantages",
            "and the trajectory's advantage are both given",
            "give advantages per token or one per trajectory, not both",
        )
