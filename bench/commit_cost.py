"""What durability costs: a checkpoint's commit, and the replay of gradients after a crash.

    python -m bench.commit_cost --directory /some/volume

A commit is an adapter of random weights with Adam's moments, written, synced, hashed and renamed
as after every optimizer step. A replay is the restart of a trainer whose log has forward-backwards
that no step has used up; SQLite's own syncs are not counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from bench.trainer.workload import SMALL, TINY, Workload, batch, policy
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from espalier.api.model.adapter import Adapter
from espalier.api.wire.base import Wire
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.api.wire.step import OptimStepRequest
from espalier.api.wire.trainer import Assignment
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine import imported_adapter
from espalier.trainer.engine.commands import Command, Sent
from espalier.trainer.engine.engine import Engine
from espalier.trainer.engine.state import TrainingState
from espalier.trainer.policy.lora import adapter_shapes
from espalier.trainer.volume.checkpoint_store import CheckpointStore, Stored
from espalier.trainer.volume.command_log import CommandLog, Key, Kind
from espalier.trainer.volume.shapes import State

MODEL, BASE = "bench", "sha256:" + "0" * 64
MEBIBYTE = 1 << 20
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, intermediate_size=1536, tie_word_embeddings=True,
)  # fmt: skip
QWEN3_4B = Qwen3Config(
    vocab_size=151_936, hidden_size=2560, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, intermediate_size=9728, tie_word_embeddings=True,
)  # fmt: skip
TINY_LLAMA = LlamaConfig(
    vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, intermediate_size=128, tie_word_embeddings=True,
)  # fmt: skip
SHAPES: dict[str, tuple[PretrainedConfig, int]] = {
    "tiny, r=4": (TINY_LLAMA, 4),
    "0.1B (SmolLM2-135M), r=16": (SMOLLM2_135M, 16),
    "4B (Qwen3-4B), r=32": (QWEN3_4B, 32),
}
# One group, so that the figure is a matter of seconds; longer batches replay in proportion.
REPLAYED = {"tiny": TINY, "32k vocabulary, 8 sequences": replace(SMALL, groups=1)}


@dataclass
class Cost:
    """CPU-seconds, seconds on the clock and calls of fsync."""

    cpu: float = 0.0
    clock: float = 0.0
    syncs: int = 0


@contextmanager
def measured() -> Iterator[Cost]:
    """Fills in the cost when the block ends."""
    cost, fsync = Cost(), os.fsync

    def counted(descriptor: int) -> None:
        cost.syncs += 1
        fsync(descriptor)

    with mock.patch.object(os, "fsync", counted):
        cpu, clock = time.process_time(), time.perf_counter()
        yield cost
        cost.cpu, cost.clock = time.process_time() - cpu, time.perf_counter() - clock


def committed(store: CheckpointStore, weights: State) -> Stored:
    """A checkpoint of these weights, and of Adam before its first step."""
    with store.staging("checkpoint") as staged:
        imported_adapter.write_tensors(staged, weights)
        return store.commit("checkpoint", staged, {"model": MODEL, "base": BASE, "step": 0})[0]


def commit(config: PretrainedConfig, rank: int, directory: Path, repeats: int) -> tuple[int, Cost]:
    """Bytes of a checkpoint and the least cost of committing one."""
    adapter = Adapter(rank=rank, alpha=2 * rank)
    with tempfile.TemporaryDirectory() as base:
        config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
        config.save_pretrained(base)
        shapes = adapter_shapes(Path(base), adapter)
    costs, size = [], 0
    for seed in range(repeats):
        torch.manual_seed(seed)
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        store = CheckpointStore(directory, MODEL)
        with measured() as cost:
            stored = committed(store, weights)
        size = stored.size_bytes
        costs.append(cost)
        store.discard(stored)
    return size, min(costs, key=lambda cost: cost.cpu)


def request(work: Workload) -> ForwardBackwardRequest:
    """The workload's batch as a client sends it."""
    inputs = [
        TrajectoryPayload(
            samples=[
                TrajectorySample(
                    prompt_token_ids=list(datum.prompt),
                    output_token_ids=list(datum.output),
                    output_logprobs=list(datum.sampling_logprobs),
                )
            ],
            reward=datum.advantage,
        )
        for datum in batch(work)
    ]
    return ForwardBackwardRequest(inputs=inputs, group_size=work.group_size)


def replay(work: Workload, directory: Path, pending: int) -> tuple[Cost, Cost, Cost]:
    """Cost of a forward-backward, of its replay, and of the optimizer step after it."""
    loaded = policy(work, torch.float32, torch.device("cpu"))
    store = CheckpointStore(directory, MODEL)

    def engine(compute: LocalCompute) -> Engine:
        log = CommandLog(store.model_directory(MODEL))
        state = TrainingState(model=MODEL, base=BASE, compute=compute, store=store, log=log)
        return Engine(state)

    def send(target: Engine, number: int, kind: Kind, body: Wire) -> None:
        answer = target.execute(Command(Key("bench", number), Sent(kind, body, None)))
        assert answer.status == 200, answer.body

    compute = LocalCompute(loaded)
    first = engine(compute)
    first.assign(Assignment(term=1, branch="main", run="default/bench"))
    body = request(work)
    with measured() as original:
        for number in range(pending):
            send(first, number, "forward-backward", body)
    # As the kernel does when the process dies; nothing is flushed or settled.
    first.state.log.close()
    with measured() as replayed:
        second = engine(compute)
    assert len(second.state.tallies) == pending
    with measured() as stepped:
        send(second, pending, "optim-step", OptimStepRequest(learning_rate=1e-4))
    second.state.log.close()
    return _each(original, pending), _each(replayed, pending), stepped


def _each(cost: Cost, count: int) -> Cost:
    return Cost(cost.cpu / count, cost.clock / count, cost.syncs // count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="on the volume to measure")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pending", type=int, default=3, help="forward-backwards to replay")
    options = parser.parse_args()
    torch.set_num_threads(1)

    print("| checkpoint | MiB | CPU-s | s | fsyncs |\n|---|---|---|---|---|")
    for name, (config, rank) in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=options.directory) as at:
            size, cost = commit(config, rank, Path(at), options.repeats)
        print(f"| {name} | {size / MEBIBYTE:.1f} | {_row(cost)} |", flush=True)
    print("\n| replay | forward-backward, CPU-s, s, fsyncs | its replay | the step after |")
    print("|---|---|---|---|")
    for name, work in REPLAYED.items():
        with tempfile.TemporaryDirectory(dir=options.directory) as at:
            costs = replay(work, Path(at), options.pending)
        cells = [_row(cost).replace(" |", ",") for cost in costs]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _row(cost: Cost) -> str:
    return f"{cost.cpu:.3f} | {cost.clock:.3f} | {cost.syncs}"


if __name__ == "__main__":
    main()
