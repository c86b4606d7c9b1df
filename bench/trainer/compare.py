"""One training step of this trainer beside TRL's algorithms: cost, memory, and equal gradients.

    python -m bench.trainer.compare --work 32k 152k           # CPU-seconds, one thread
    python -m bench.trainer.compare --work tiny --float64     # gradients to 1e-12
    python -m bench.trainer.compare --work qwen3-4b --device cuda --profile

Variants take turns, and each figure is the lowest of its turns with the highest beside it. Memory
is measured in a child process per variant: the peak of one step above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench.trainer.variants import NAMES, Variant, variants
from bench.trainer.workload import WORKLOADS, Workload, batch, policy

from espalier.trainer.data import Datum
from espalier.trainer.packing import pack

GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
MEBIBYTE = 1 << 20


def main() -> None:
    options = _options()
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    if options.memory_child:
        print(json.dumps(_memory(options)))
        return
    for name in options.work:
        _compare(name, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=WORKLOADS, default=["32k", "152k"])
    parser.add_argument("--variants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences, padded variants")
    parser.add_argument("--row-tokens", type=int, help="unique tokens of a packed row")
    parser.add_argument("--float64", action="store_true", help="gradients only, norms in float64")
    parser.add_argument("--profile", action="store_true", help="where the time of ours goes")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-child", action="store_true", help=argparse.SUPPRESS)
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
    if not options.memory_child:
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
    _, data, made = _made(name, options)
    dtype = next(iter(made[0].parameters.values())).dtype
    seconds: dict[str, list[float]] = {variant.key: [] for variant in made}
    differences = _differences(made, seconds, options.device)
    for _ in range(0 if options.float64 else options.repeats - 1):
        for variant in made:
            seconds[variant.key].append(_seconds(variant, options.device))
            variant.forget()
    memory = {}
    if not options.no_memory and not options.float64:
        memory = {variant.key: _memory_of(name, variant.key, options) for variant in made}
    real = sum(len(datum.prompt) + len(datum.output) for datum in data)
    _table(made, seconds, memory, differences, real)
    if options.device == "cuda":
        unique = _unique(data, options.row_tokens or 1 << 30)
        print(f"ours: {unique / min(seconds['ours']):.0f} unique tokens/s")
    if options.profile:
        _profile(made[0], options.device)
    limit = GRADIENT_TOLERANCE[dtype]
    exact = dtype == torch.float64 or WORKLOADS[name].dtype == "float32"
    worst = max(differences.values())
    if exact and worst > limit:
        sys.exit(f"gradients differ by {worst:.2g}, more than {limit:g}")


def _differences(
    made: Sequence[Variant], seconds: dict[str, list[float]], device: str
) -> dict[str, float]:
    """Worst tensor's largest difference to the first variant's gradient, over its largest entry.

    The step that it takes is the first turn in ``seconds``.
    """
    reference, result = None, {}
    for variant in made:
        seconds[variant.key].append(_seconds(variant, device))
        found = variant.gradients()
        variant.forget()
        reference = found if reference is None else reference
        assert set(found) == set(reference)
        result[variant.key] = max(
            float((found[key] - value).abs().max() / value.abs().max())
            for key, value in reference.items()
        )
    return result


def _seconds(variant: Variant, device: str) -> float:
    """CPU-seconds of a step, all threads; on a GPU seconds until it has nothing left to do."""
    if device == "cpu":
        start = time.process_time()
        variant.step()
        spent = time.process_time() - start
    else:
        torch.cuda.synchronize()
        start = time.perf_counter()
        variant.step()
        torch.cuda.synchronize()
        spent = time.perf_counter() - start
    return spent


def _memory_of(name: str, key: str, options: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "bench.trainer.compare", "--memory-child", "--work", name]
    command += ["--variants", key, "--device", options.device]
    command += ["--micro-batch", str(options.micro_batch)]
    if options.row_tokens:
        command += ["--row-tokens", str(options.row_tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _memory(options: argparse.Namespace) -> float:
    """MiB that a first step needs above what the loaded model holds."""
    _, _, (variant,) = _made(options.work[0], options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        variant.step()
        return (torch.cuda.max_memory_allocated() - base) / MEBIBYTE
    base = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    variant.step()
    return (_resident("VmHWM") - base) / 1024


def _resident(field: str) -> int:
    """KiB, by its name in /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def _table(
    made: Sequence[Variant],
    seconds: dict[str, list[float]],
    memory: dict[str, float],
    differences: dict[str, float],
    real: int,
) -> None:
    print("| variant | s per step (highest) | real tokens/s | ours is faster by | peak MiB | "
          "of ours | gradient differs |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    ours, size = made[0].key, None
    for variant in made:
        key, spent = variant.key, seconds[variant.key]
        cells = [NAMES[key]]
        cells += [f"{min(spent):.2f} ({max(spent):.2f})", f"{real / min(spent):.0f}",
                  f"{min(spent) / min(seconds[ours]):.2f}"]  # fmt: skip
        size = memory.get(ours) or size
        cells += (
            [f"{memory[key]:.0f}", f"{memory[key] / size:.2f}"] if memory and size else ["", ""]
        )
        cells.append(f"{differences[key]:.1e}")
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
