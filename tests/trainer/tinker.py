"""Commands as Tinker's SDK sends them, for the tiny model, and their way through the inbox."""

from __future__ import annotations

import json
import random
from array import array
from itertools import pairwise
from typing import Any

from tests.tinker.messages import MODEL_ID, Explicit, datum, forward_backward
from tests.trainer import tiny

from espalier.tinker import messages_pb2 as pb
from espalier.tinker import values
from espalier.trainer.engine import queue
from espalier.trainer.engine.engine import Engine
from espalier.trainer.volume.command_log import Key, Kind
from espalier.trainer.volume.inbox import Arrival
from espalier.trainer.volume.log_records import TINKER_GRADIENTS


def rollout(generator: random.Random) -> Explicit:
    """A prompt and a completion, as the cookbook's loop of reinforcement learning sends them."""
    prompt = [generator.randrange(tiny.VOCABULARY) for _ in range(generator.randint(2, 6))]
    sampled = [generator.randrange(tiny.VOCABULARY) for _ in range(generator.randint(1, 6))]
    before = [0] * (len(prompt) - 1)
    advantage = generator.uniform(-1, 1)
    return Explicit(
        [*prompt, *sampled[:-1]],
        [*before, *sampled],
        {
            "logprobs": [*before, *(-generator.uniform(3, 6) for _ in sampled)],
            "advantages": [*before, *(advantage for _ in sampled)],
        },
    )


def batch(seed: int = 0, count: int = 4) -> list[pb.Datum]:
    generator = random.Random(seed)
    return [datum(rollout(generator)) for _ in range(count)]


def optim_step(seq: int, model_id: str = MODEL_ID, **params: float) -> bytes:
    sent = {
        "model_id": model_id,
        "seq_id": seq,
        "type": "optim_step",
        "adam_params": {"learning_rate": 1e-2} | params,
    }
    return json.dumps(sent).encode()


def save(seq: int, name: str = "first", kind: str = "save_weights") -> bytes:
    return json.dumps({"model_id": MODEL_ID, "seq_id": seq, "path": name, "type": kind}).encode()


def load(seq: int, digest: str, *, optimizer: bool) -> bytes:
    sent = {"model_id": MODEL_ID, "seq_id": seq, "digest": digest, "optimizer": optimizer}
    return json.dumps({**sent, "type": "load_weights"}).encode()


def accept(
    engine: Engine,
    seq: int,
    kind: Kind,
    body: bytes,
    *,
    model_id: str = MODEL_ID,
    term: int | None = None,
    declared: str = "",
) -> None:
    engine.state.log.inbox.accept(Arrival(Key(model_id, seq), kind, body, term, declared))


def work(engine: Engine) -> list[int]:
    """Applies what can be; the numbers that were answered, in order."""
    answered = []
    while (turn := queue.take_turn(engine)).answered is not None:
        answered.append(turn.answered.seq)
    return answered


def gradients(seq: int, seed: int = 0, **changes: Any) -> tuple[int, Kind, bytes]:
    return seq, TINKER_GRADIENTS, forward_backward(seq, batch(seed), **changes)


def step(seq: int, **params: float) -> tuple[int, Kind, bytes]:
    return seq, "optim-step", optim_step(seq, **params)


def status(engine: Engine, seq: int) -> int | None:
    record = engine.state.log.find(Key(MODEL_ID, seq))
    return None if record is None else record.status


def reason(engine: Engine, seq: int) -> str:
    record = engine.state.log.find(Key(MODEL_ID, seq))
    assert record is not None
    return str(json.loads(record.answer)["reason"])


def output(engine: Engine, seq: int) -> pb.ForwardBackwardOutput:
    record = engine.state.log.find(Key(MODEL_ID, seq))
    assert record is not None
    result = engine.state.log.result(record)
    assert result is not None
    return pb.ForwardBackwardOutput.FromString(result)


def logprobs(of: pb.ForwardBackwardOutput) -> list[list[float]]:
    """Of every datum, as the SDK slices them."""
    (record,) = of.loss_fn_outputs
    found = record.fields["logprobs"]
    bounds: array[int] = values.read(found.offsets, values.INT64, "offsets")
    numbers = values.read(found.data, values.FLOAT32, "data")
    cuts = [offset // 4 for offset in bounds]
    assert len(cuts) == record.num_datums + 1
    return [list(numbers[a:b]) for a, b in pairwise(cuts)]
