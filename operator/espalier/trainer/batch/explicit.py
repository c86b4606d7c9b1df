"""Batches of Tinker's client as datums: every input position has its own target.

Source: Tinker's losses. Position i of N is scored on ``targets[i]``, at temperature 1; what is
not to be trained has weight or advantage 0, and its log-prob is told all the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from espalier.tinker.datums import ExplicitBatch, ExplicitDatum
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.losses import LossSpec, loss_spec
from espalier.trainer.batch.objective import CallTokens, token_loss
from espalier.trainer.problems import CommandError, invalid

# The last input token predicts its own target, so no token follows it.
_NONE = 0


def check(batch: ExplicitBatch, limits: Limits) -> LossSpec:
    """The loss of a batch that fits the base; raises 422 naming what does not."""
    for index, datum in enumerate(batch.data):
        field = f"data[{index}]"
        _check_tokens(datum.tokens, f"{field}.model_input", limits)
        _check_tokens(datum.targets, f"{field}.loss_fn_inputs.target_tokens", limits)
        if len(datum.tokens) > limits.context:
            raise CommandError(
                422,
                "ContextTooLong",
                f"{field}.model_input: {len(datum.tokens)} tokens exceed the base model's context "
                f"of {limits.context}",
                "shorten the sequence",
            )
    return loss_spec(batch.loss_fn, batch.loss_fn_config)


def datums(batch: ExplicitBatch) -> list[Datum]:
    """One datum per sequence, in request order."""
    return [_datum(datum, batch.loss_fn, index) for index, datum in enumerate(batch.data)]


def loss(spec: LossSpec, data: Sequence[Datum], logprobs: Sequence[Sequence[float]]) -> float:
    """The loss of known log-probs, summed over all targets."""
    return token_loss(
        spec, call_tokens(data, torch.tensor([p for one in logprobs for p in one]))
    ).loss


def call_tokens(data: Sequence[Datum], logprobs: Tensor) -> CallTokens:
    """What a loss is taken of, in the type of ``logprobs`` [N of all datums]."""
    bounds, start = [], 0
    for datum in data:
        bounds.append((start, start + len(datum.predicted)))
        start += len(datum.predicted)

    def values(of: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor([value for one in of for value in one], dtype=logprobs.dtype)

    none = [(0.0,) * len(datum.predicted) for datum in data]
    return CallTokens(
        logprobs=logprobs,
        sampling=values([d.sampling_logprobs or n for d, n in zip(data, none, strict=True)]),
        anchor=None,
        advantages=values([datum.advantages for datum in data]),
        weights=values([datum.weights for datum in data]),
        sequences=bounds,
        counted=values([datum.trained for datum in data]).bool(),
    )


def _datum(datum: ExplicitDatum, name: str, index: int) -> Datum:
    values, count = datum.values, len(datum.tokens)
    sampling = values.get("logprobs", ())
    advantages = values.get("advantages", ())
    weights = values.get("weights") or values.get("sequence_ratio_mask") or ()
    # The client does not say where the prompt ends; there it sends zeros for all of these.
    telling = (weights,) if name == "cross_entropy" else (sampling, advantages)
    counted = np.any([np.asarray(one) != 0 for one in telling], axis=0)
    return Datum(
        prompt=(datum.tokens[0],),
        output=(*datum.tokens[1:], _NONE),
        sampling_logprobs=tuple(sampling),
        advantage=0.0,
        reward=0.0,
        trajectory=index,
        group=None,
        token_advantages=tuple(advantages) or (0.0,) * count,
        token_weights=tuple(weights),
        targets=tuple(datum.targets),
        counted=tuple(counted.tolist()),
        field=f"data[{index}]",
    )


def _check_tokens(tokens: array[int], field: str, limits: Limits) -> None:
    if min(tokens) < 0 or max(tokens) >= limits.vocabulary:
        raise invalid(
            field,
            f"has token ids outside 0..{limits.vocabulary - 1}",
            "tokenize with the base model's own tokenizer",
        )
