"""What a command of Tinker's clients came to, from the log, as the answer to who asks for it."""

from __future__ import annotations

from aiohttp import web
from pydantic import BaseModel

from espalier.api.wire.headers import CHECKPOINT, CHECKPOINT_DIGEST
from espalier.api.wire.problem import Problem
from espalier.tinker.bodies import Stepped
from espalier.tinker.commands import CommandKind
from espalier.tinker.results import PROTOBUF, Category, Failed
from espalier.trainer.engine.engine import Engine
from espalier.trainer.volume.command_log import CommandLog, Key, Kind, Record
from espalier.trainer.volume.log_records import GAP, TINKER_GRADIENTS

# Of each kind of command, the one that the log has it as.
KINDS: dict[CommandKind, Kind] = {
    "forward-backward": TINKER_GRADIENTS,
    "optim-step": "optim-step",
    "save-weights": "save-weights",
    "load-weights": "load-weights",
}


def result(engine: Engine, key: Key) -> web.Response | None:
    """A command's result; None while it waits, 404 if it never came."""
    log = engine.state.log
    # In this order: a command leaves the inbox in the transaction that logs its answer.
    queued = log.inbox.find(key)
    if queued is not None:
        return _failed(422, queued.problem) if queued.problem else None
    record = log.find(key)
    if record is None or record.status is None or record.kind not in (*KINDS.values(), GAP):
        problem = Problem(
            reason="CommandUnknown",
            detail=f"seq_id {key.seq} of {key.session} never arrived here",
            remedy="send the command first",
        )
        return as_json(problem, status=404)
    if record.status >= 400:
        return _failed(record.status, record.answer)
    if record.kind == TINKER_GRADIENTS:
        return _logprobs(log, record)
    if record.kind == "optim-step":
        return _stepped(engine, record)
    return web.Response(text=record.answer, content_type="application/json")


def _logprobs(log: CommandLog, record: Record) -> web.Response:
    found = log.result(record)
    if found is None:
        error = "the log-probs of this result are kept no longer: newer ones have taken their room"
        return as_json(Failed(error=error, category="server"))
    return web.Response(body=found, content_type=PROTOBUF)


def _stepped(engine: Engine, record: Record) -> web.Response:
    """The metrics of the commit that the step made."""
    commit = next(c for c in reversed(engine.state.commits) if c.digest == record.checkpoint)
    response = as_json(Stepped(metrics=commit.metrics | {"step": float(commit.step)}))
    response.headers[CHECKPOINT] = commit.name
    response.headers[CHECKPOINT_DIGEST] = commit.digest
    return response


def _failed(status: int, answer: str) -> web.Response:
    problem = Problem.model_validate_json(answer)
    category: Category = "server" if status >= 500 else "user"
    return as_json(Failed(error=problem.text, category=category))


def as_json(body: BaseModel, status: int = 200) -> web.Response:
    """An answer with this body."""
    return web.Response(status=status, text=body.model_dump_json(), content_type="application/json")
