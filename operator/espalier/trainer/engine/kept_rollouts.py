"""What a step was trained on, as people read it, where the client does not say it itself.

HUD's client sends no rollouts with a step. Their tokens are in the commands whose gradients the
step takes, and what came of them in the reports of their traces.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from espalier.api.platform import TraceRecord
from espalier.api.wire import BackwardRequest, TrajectoryPayload, TrajectorySample
from espalier.trainer.engine.commands import held_forward, logged_request
from espalier.trainer.problems import CommandError
from espalier.trainer.volume.checkpoint_store import CheckpointStore, DigestError
from espalier.trainer.volume.trace_store import canonical_or_empty

if TYPE_CHECKING:
    from espalier.trainer.engine.engine import Engine

logger = logging.getLogger(__name__)

# Of a prompt the end is kept: it is what the completion answers.
PROMPT_CHARS = 8000


class Reader:
    """Turns tokens into text by the tokenizer of a base; without one there is no text."""

    def __init__(self, store: CheckpointStore, base: str) -> None:
        self._store, self._base = store, base

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            path = self._store.open("base", self._base).path
            return AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, DigestError) as error:
            logger.warning("no tokenizer, so rollouts are kept without text: %s", error)
            return None

    def text(self, tokens: Sequence[int], *, special: bool) -> str | None:
        """The text of tokens, with or without ``special`` ones such as the ends of turns."""
        if self._tokenizer is None:
            return None
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=not special)
        return text


def records(engine: Engine) -> list[dict[str, Any]]:
    """A record for every trajectory that the next step takes, then for the others of their jobs."""
    payloads = [payload for payload in _pending(engine) if isinstance(payload, TrajectoryPayload)]
    ids = [canonical_or_empty(payload.trace_id) for payload in payloads]
    try:
        told = {trace.id: trace for trace in engine.traces.told({name for name in ids if name})}
    except (sqlite3.Error, CommandError) as error:
        logger.warning("the reports of the step's traces are not kept: %s", error)
        told = {}
    rows = [
        _trained(engine.reader, payload, told.pop(name, None))
        for name, payload in zip(ids, payloads, strict=True)
    ]
    return rows + [_left_out(engine.reader, trace) for trace in told.values()]


def mark(engine: Engine, rows: Sequence[Mapping[str, Any]]) -> None:
    """No later step tells of these again."""
    try:
        engine.traces.mark_told([row["trace"] for row in rows if "trace" in row])
    except sqlite3.Error as error:
        logger.warning("the step's traces will be told again: %s", error)


def _pending(engine: Engine) -> list[str | TrajectoryPayload]:
    found: list[str | TrajectoryPayload] = []
    for record in engine.log.pending():
        request = logged_request(engine.log, record)
        if isinstance(request, BackwardRequest):
            found += held_forward(engine.log, request.forward_id).inputs
        else:
            found += request.inputs
    return found


def _trained(
    reader: Reader, payload: TrajectoryPayload, trace: TraceRecord | None
) -> dict[str, Any]:
    reported = _reported(trace) if trace is not None else {}
    named = {"trace": payload.trace_id} if payload.trace_id else {}
    mine = {"reward": payload.reward, "trained": True}
    return named | _sampled(reader, payload.samples) | reported | mine


def _left_out(reader: Reader, trace: TraceRecord) -> dict[str, Any]:
    samples = [TrajectorySample.model_validate(sample) for sample in trace.samples]
    return {
        "trace": trace.id,
        **_sampled(reader, samples),
        **_reported(trace),
        "trained": False,
    }


def _sampled(reader: Reader, samples: Sequence[TrajectorySample]) -> dict[str, Any]:
    """Prompt and completion of the last turn, and how much was sampled in all."""
    if not samples:
        return {"turns": 0, "tokens": 0}
    last = samples[-1]
    prompt = reader.text(last.prompt_token_ids or (), special=True)
    written = {
        "prompt": prompt[-PROMPT_CHARS:] if prompt else None,
        "completion": reader.text(last.output_token_ids, special=False),
        "turns": len(samples),
        "tokens": sum(len(sample.output_token_ids) for sample in samples),
    }
    return {name: value for name, value in written.items() if value is not None}


def _reported(trace: TraceRecord) -> dict[str, Any]:
    """What its client said of a rollout."""
    enter, left = trace.enter or {}, trace.exit or {}
    said = {
        "task": enter.get("task_slug"),
        "group": enter.get("group_id"),
        "job": enter.get("job_id"),
        "reward": left.get("reward"),
        "status": left.get("status"),
        "stop_reason": left.get("stop_reason"),
        "error": left.get("error"),
        "metadata": left.get("metadata"),
    }
    return {name: value for name, value in said.items() if value not in (None, "", {})}
