"""What of a sample on the wire does not fit: 422, naming the field."""

from __future__ import annotations

from espalier.api.wire.gradients import ForwardBackwardRequest, TrajectoriesRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.batch.limits import Limits
from espalier.trainer.problems import CommandError, invalid


def check_anchors(trajectories: list[TrajectoryPayload], request: TrajectoriesRequest) -> None:
    """Anchors are read with every sample, or with none."""
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


def prompt_of(sample: TrajectorySample, field: str) -> tuple[int, ...]:
    """The tokens of its prompt."""
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


def check_sample(
    sample: TrajectorySample,
    prompt: tuple[int, ...],
    field: str,
    limits: Limits,
    *,
    policies_compared: bool,
) -> None:
    """Its tokens are of the vocabulary, fit the context, and have log-probs where they are read."""
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


def temperature_of(
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


def check_token_values(
    sample: TrajectorySample,
    trajectory: TrajectoryPayload,
    field: str,
    *,
    policies_compared: bool,
    weighted: bool,
) -> None:
    """What it has for each token is as long as its output, and read by the loss."""
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
