"""Rollouts to train on, as tokens."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, Strict, model_validator

from espalier.api.sampled import CHUNK
from espalier.api.wire.base import Real, Reals, Wholes, Wire


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
