"""One training step of this trainer beside TRL's algorithms: cost, memory, and equal gradients.

    python -m bench.trainer.compare --work 32k 152k           # CPU-seconds, one thread
    python -m bench.trainer.compare --work tiny --float64     # gradients to 1e-12
    python -m bench.trainer.compare --work qwen3-4b --device cuda --profile

Variants take turns, a process for every turn: it loads the model and takes one step, whose
CPU-seconds, peak memory above the loaded model and gradient it hands back. Seconds are the lowest
of the turns with the highest beside it; "by round" is the median of the ratios within a round, the
lowest and highest beside it: it stands still where the machine's speed drifts between rounds.
``trl`` runs in an environment with TRL's own code.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench.trainer.variants import NAMES, Variant, variants
from bench.trainer.workload import WORKLOADS, Workload, batch, policy
from safetensors.torch import load_file, save_file
from torch import Tensor

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.memory.allocator import align_large_blocks

GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
MEBIBYTE = 1 << 20
ROOT = Path(__file__).parents[2]
GRADIENT_FILE = "gradient.safetensors"


@dataclass(frozen=True)
class Turn:
    """One step: seconds, MiB above the loaded model, and the gradient by parameter."""

    seconds: float
    mebibytes: float
    gradient: dict[str, Tensor]


def main() -> None:
    options = _options()
    align_large_blocks()
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    if options.child is not None:
        _turn(options)
        return
    for name in options.work:
        _compare(name, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=WORKLOADS, default=["32k", "152k"])
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=[*NAMES][:-1])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences, padded variants")
    parser.add_argument("--row-tokens", type=int, help="unique tokens of a packed row")
    parser.add_argument("--float64", action="store_true", help="gradients only, norms in float64")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _made(name: str, options: argparse.Namespace) -> tuple[Workload, list[Datum], list[Variant]]:
    work, device = WORKLOADS[name], torch.device(options.device)
    dtype = torch.float64 if options.float64 else getattr(torch, work.dtype)
    ours, data = policy(work, dtype, device), batch(work)
    if options.float64:
        _wide_norms()
    if options.row_tokens:
        ours.row_tokens = options.row_tokens
    made = variants(options.variants, work, ours, data, options.micro_batch)
    if options.child is None:
        _say_tokens(name, work, data, ours.row_tokens, options)
    return work, data, made


def _wide_norms() -> None:
    """Hugging Face's RMSNorm computes in float32 whatever the model's type; here in its own."""
    from transformers.models.qwen3 import modeling_qwen3  # noqa: PLC0415

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden * scale)

    modeling_qwen3.Qwen3RMSNorm.forward = forward


def _say_tokens(
    name: str, work: Workload, data: Sequence[Datum], budget: int, options: argparse.Namespace
) -> None:
    real = sum(len(datum.prompt) + len(datum.output) for datum in data)
    slots = 0
    for start in range(0, len(data), options.micro_batch):
        part = data[start : start + options.micro_batch]
        slots += len(part) * (work.prompt + max(len(datum.output) for datum in part))
    unique = _unique(data, budget)
    print(
        f"\n== {name}: vocabulary {work.vocabulary}, {len(data)} sequences; "
        f"{slots} padded, {real} real, {unique} unique tokens in rows of {budget}; "
        f"{options.device}, {torch.get_num_threads()} thread(s)",
        flush=True,
    )


def _unique(data: Sequence[Datum], budget: int) -> int:
    return sum(len(row.tokens) for row in pack(data, budget))


def _compare(name: str, options: argparse.Namespace) -> None:
    work, data, made = _made(name, options)
    turns: dict[str, list[Turn]] = {key: [] for key in options.variants}
    for _ in range(1 if options.float64 else options.repeats):
        for key, done in turns.items():
            done.append(_isolated(name, key, options))
    differences = _differences(turns)
    real = sum(len(datum.prompt) + len(datum.output) for datum in data)
    _table(turns, differences, real)
    if options.device == "cuda":
        fastest = min(turn.seconds for turn in turns[options.variants[0]])
        unique = _unique(data, options.row_tokens or 1 << 30)
        print(f"{NAMES[options.variants[0]]}: {unique / fastest:.0f} unique tokens/s")
    if options.profile:
        _profile(made[0], options.device)
    dtype = torch.float64 if options.float64 else getattr(torch, work.dtype)
    worst = max(differences.values())
    if worst > GRADIENT_TOLERANCE.get(dtype, math.inf):
        sys.exit(f"gradients differ by {worst:.2g}, more than {GRADIENT_TOLERANCE[dtype]:g}")


def _differences(turns: dict[str, list[Turn]]) -> dict[str, float]:
    """Worst tensor's largest difference to the first variant's gradient, over its largest entry."""
    reference = next(iter(turns.values()))[0].gradient
    result = {}
    for key, (turn, *_) in turns.items():
        assert set(turn.gradient) == set(reference)
        result[key] = max(
            float((turn.gradient[name] - value).abs().max() / value.abs().max())
            for name, value in reference.items()
        )
    return result


def _isolated(name: str, key: str, options: argparse.Namespace) -> Turn:
    with tempfile.TemporaryDirectory() as folder:
        command = [_python(key), "-m", "bench.trainer.compare", "--child", folder, "--work", name]
        command += ["--variants", key, "--device", options.device]
        command += ["--micro-batch", str(options.micro_batch)]
        command += ["--row-tokens", str(options.row_tokens)] if options.row_tokens else []
        command += ["--float64"] if options.float64 else []
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT)])
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        figures = json.loads(done.stdout.splitlines()[-1])
        return Turn(**figures, gradient=load_file(Path(folder) / GRADIENT_FILE))


@cache
def _python(key: str) -> str:
    if key != "trl":
        return sys.executable
    script = Path(__file__).with_name("trl_environment.sh")
    done = subprocess.run([str(script)], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _turn(options: argparse.Namespace) -> None:
    """Takes a step of a variant, and hands its figures and gradient to the parent process."""
    _, _, (variant,) = _made(options.work[0], options)
    if options.device == "cuda":
        # Kernels are chosen and loaded in a process's first step.
        variant.step()
        variant.forget()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        seconds = _seconds(variant, options.device)
        peak = (torch.cuda.max_memory_allocated() - base) / MEBIBYTE
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        seconds = _seconds(variant, options.device)
        peak = (_resident("VmHWM") - before) / 1024
    save_file({n: g.contiguous() for n, g in variant.gradients().items()},
              options.child / GRADIENT_FILE)  # fmt: skip
    print(json.dumps({"seconds": seconds, "mebibytes": peak}))


def _seconds(variant: Variant, device: str) -> float:
    """CPU-seconds of a step, all threads; on a GPU seconds until it has nothing left to do."""
    if device == "cpu":
        start = time.process_time()
        variant.step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    variant.step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _resident(field: str) -> int:
    """KiB, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def _table(turns: dict[str, list[Turn]], differences: dict[str, float], real: int) -> None:
    print("| variant | s per step (highest) | real tokens/s | ours is faster by | by round | "
          "peak MiB | of ours | gradient differs |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    seconds = {key: [turn.seconds for turn in done] for key, done in turns.items()}
    memory = {key: min(turn.mebibytes for turn in done) for key, done in turns.items()}
    first = next(iter(turns))
    for key, spent in seconds.items():
        rounds = [theirs / ours for theirs, ours in zip(spent, seconds[first], strict=True)]
        cells = [
            NAMES[key],
            f"{min(spent):.2f} ({max(spent):.2f})",
            f"{real / min(spent):.0f}",
            f"{min(spent) / min(seconds[first]):.2f}",
            f"{median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})",
            f"{memory[key]:.0f}",
            f"{memory[key] / max(memory[first], 1.0):.2f}",
            f"{differences[key]:.1e}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def _profile(variant: Variant, device: str) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        variant.step()
    variant.forget()
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))


if __name__ == "__main__":
    main()
