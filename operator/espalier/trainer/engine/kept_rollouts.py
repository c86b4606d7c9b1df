"""Readable rollouts of a step, made by the trainer when the client sends none.

HUD's client sends no rollouts with a step. Their tokens are in the commands whose gradients the
step takes; their outcomes are in the reports of their traces.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from espalier.api.platform import TraceRecord
from espalier.api.wire.gradients import BackwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.engine.detokenizer import Detokenizer
from espalier.trainer.engine.forwards import held_forward
from espalier.trainer.engine.gradient_commands import logged_request
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.log_records import TINKER_GRADIENTS
from espalier.trainer.volume.trace_ids import canonical_or_empty

logger = logging.getLogger(__name__)

# Keep the end of a prompt: the completion answers it.
PROMPT_CHARS = 8000
# Of one record whose tokens are spelt out; a client may name any number.
TOKENS_MOST = 4096


def of_step(state: TrainingState, request: OptimStepRequest) -> list[dict[str, Any]]:
    """What is kept beside the checkpoint of a step: what its client gave, else what we know."""
    if not request.keep_rollouts:
        return []
    if not request.rollouts:
        return records(state)
    return [_worded(state.detokenizer, rollout) for rollout in request.rollouts]


def _worded(detokenizer: Detokenizer, rollout: dict[str, Any]) -> dict[str, Any]:
    """A client's record; where it has ``token_ids``, with the text of each."""
    ids = rollout.get("token_ids")
    if not isinstance(ids, list) or len(ids) > TOKENS_MOST or "token_texts" in rollout:
        return rollout
    texts = detokenizer.texts(ids)
    return rollout if texts is None else {**rollout, "token_texts": texts}


def records(state: TrainingState) -> list[dict[str, Any]]:
    """A record for every trajectory of the next step, then for the other traces of their jobs."""
    payloads = [payload for payload in _pending(state) if isinstance(payload, TrajectoryPayload)]
    ids = [canonical_or_empty(payload.trace_id) for payload in payloads]
    try:
        traces = {
            trace.id: trace for trace in state.traces.unreported({name for name in ids if name})
        }
    except (sqlite3.Error, CommandError) as error:
        logger.warning("the reports of the step's traces are not kept: %s", error)
        traces = {}
    rows = [
        _trained(state.detokenizer, payload, traces.pop(name, None))
        for name, payload in zip(ids, payloads, strict=True)
    ]
    return rows + [_left_out(state.detokenizer, trace) for trace in traces.values()]


def mark(state: TrainingState, rows: Sequence[Mapping[str, Any]]) -> None:
    """Marks the traces of ``rows``: later steps leave them out."""
    try:
        state.traces.mark_reported([row["trace"] for row in rows if "trace" in row])
    except sqlite3.Error as error:
        logger.warning("the step's traces will be told again: %s", error)


def _pending(state: TrainingState) -> list[str | TrajectoryPayload]:
    inputs: list[str | TrajectoryPayload] = []
    for record in state.log.pending():
        if record.kind == TINKER_GRADIENTS:
            # Tokens and targets: nothing says which of them were sampled.
            continue
        request = logged_request(state.log, record)
        if isinstance(request, BackwardRequest):
            inputs += held_forward(state.log, request.forward_id).inputs
        else:
            inputs += request.inputs
    return inputs


def _trained(
    detokenizer: Detokenizer, payload: TrajectoryPayload, trace: TraceRecord | None
) -> dict[str, Any]:
    reported = _reported(trace) if trace is not None else {}
    named = {"trace": payload.trace_id} if payload.trace_id else {}
    mine = {"reward": payload.reward, "trained": True}
    return named | _sampled(detokenizer, payload.samples) | reported | mine


def _left_out(detokenizer: Detokenizer, trace: TraceRecord) -> dict[str, Any]:
    samples = [TrajectorySample.model_validate(sample) for sample in trace.samples]
    return {
        "trace": trace.id,
        **_sampled(detokenizer, samples),
        **_reported(trace),
        "trained": False,
    }


def _sampled(detokenizer: Detokenizer, samples: Sequence[TrajectorySample]) -> dict[str, Any]:
    """Prompt and completion of the last turn, and how much was sampled in all."""
    if not samples:
        return {"turns": 0, "tokens": 0}
    last = samples[-1]
    prompt = detokenizer.text(last.prompt_token_ids or (), special=True)
    written = {
        "prompt": prompt[-PROMPT_CHARS:] if prompt else None,
        "completion": detokenizer.text(last.output_token_ids, special=False),
        "turns": len(samples),
        "tokens": sum(len(sample.output_token_ids) for sample in samples),
    }
    return {name: value for name, value in written.items() if value is not None}


def _reported(trace: TraceRecord) -> dict[str, Any]:
    """The client's report of a rollout."""
    enter, left = trace.enter or {}, trace.exit or {}
    reported = {
        "task": enter.get("task_slug"),
        "group": enter.get("group_id"),
        "job": enter.get("job_id"),
        "reward": left.get("reward"),
        "status": left.get("status"),
        "stop_reason": left.get("stop_reason"),
        "error": left.get("error"),
        "metadata": left.get("metadata"),
    }
    return {name: value for name, value in reported.items() if value not in (None, "", {})}
