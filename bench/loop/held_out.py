"""Scores adapters of both sides on the held-out sums, greedily, by the same engine.

    PYTHONPATH=operator:. python -m bench.loop.held_out MODEL OUT

Appends ``{"seed", "side", "step", "right"}`` to ``OUT/scores.jsonl``, where ``right`` has a 0 or 1
for each sum; step 0 is the base. What is there already is not scored again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.loop.sums import ANSWER, Sum, held_out

# One process, on one thread, and room for all sums at once.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
CACHE_BYTES = 1 << 29


class Engine:
    """vLLM with adapters, greedy."""

    def __init__(self, model: str, rank: int) -> None:
        # Imported here: it reads the environment.
        from vllm import LLM, SamplingParams  # noqa: PLC0415

        from espalier.sampler.cpu import lora_ops  # noqa: PLC0415

        # vLLM's own gathers a copy of an adapter's matrices for every token: minutes an adapter.
        lora_ops.install()
        self._llm = LLM(
            model,
            dtype="float32",
            max_model_len=512,
            enable_lora=True,
            max_lora_rank=rank,
            enforce_eager=True,
            block_size=32,
            kv_cache_memory_bytes=CACHE_BYTES,
            disable_log_stats=True,
        )
        self._greedy = SamplingParams(temperature=0, max_tokens=ANSWER)
        self._loaded = 0

    def right(self, sums: Sequence[Sum], adapter: Path | None) -> list[int]:
        """Which of the sums an adapter gets right, or the base."""
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        request = None
        if adapter is not None:
            self._loaded += 1
            request = LoRARequest(str(adapter), self._loaded, str(adapter))
        chats = [one.prompt for one in sums]
        answers = self._llm.chat(chats, self._greedy, lora_request=request, use_tqdm=False)
        texts = [answer.outputs[0].text for answer in answers]
        return [int(one.reward(text)) for one, text in zip(sums, texts, strict=True)]


def adapters(out: Path) -> Iterator[tuple[int, str, int, Path | None]]:
    """Seed, side, step and directory of every adapter, the base first."""
    yield 0, "base", 0, None
    for path in sorted(out.glob("*/*/*/adapter_config.json")):
        seed, side, step = path.parts[-4:-1]
        yield int(seed), side, int(step), path.parent


def main() -> None:
    """Scores what has no score yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    sums = held_out()
    rank = json.loads((given.out / "setting.json").read_text())["rank"]
    scores = given.out / "scores.jsonl"
    rows = map(json.loads, scores.read_text().splitlines()) if scores.exists() else ()
    known = {(row["seed"], row["side"], row["step"]) for row in rows}
    engine = Engine(given.model, rank)
    for seed, side, step, path in adapters(given.out):
        if (seed, side, step) in known:
            continue
        found = engine.right(sums, path)
        row = {"seed": seed, "side": side, "step": step, "right": found}
        with scores.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(seed, side, step, f"{sum(found)} of {len(found)}", flush=True)


if __name__ == "__main__":
    main()
