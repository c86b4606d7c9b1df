"""What `make gpu` ran on: ``check`` says why nothing can run, ``report`` writes it up.

python -m bench.trainer.hardware check
python -m bench.trainer.hardware report TESTS STEP    # the outputs of both, to Markdown
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

# By distribution: what the trainer and its tests import. With torch, the oldest that serves.
NEEDED = (
    "torch", "transformers", "peft", "safetensors", "pydantic", "PyYAML", "numpy",
    "pytest", "hypothesis",
)  # fmt: skip
OLDEST_TORCH = (2, 11)


def problem() -> str | None:
    """Why the GPU's tests cannot run here, with the remedy."""
    missing = [name for name in NEEDED if _version(name) is None]
    if missing:
        return (
            f"{sys.executable} lacks {', '.join(missing)}: install them, put them on PYTHONPATH, "
            "or name another Python with PYTHON=..."
        )
    import torch  # noqa: PLC0415  # only now is it known to be there

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"torch is {torch.__version__}, {oldest} or later is needed: set PYTHON=..."
    if not torch.cuda.is_available():
        return (
            f"no GPU could be had: torch {torch.__version__} sees none, so nothing was run; "
            "run it on a machine with an NVIDIA GPU and its driver"
        )
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def report(tests: str, step: str) -> str:
    """A page of results."""
    import torch  # noqa: PLC0415

    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    gpus = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    versions = ", ".join(f"{name} {_version(name)}" for name in NEEDED)
    return "\n".join(
        [
            f"# The trainer on a GPU, {datetime.now(UTC):%Y-%m-%d}",
            "",
            f"{len(gpus)} x {gpus[0]}; CUDA {torch.version.cuda}; Python "
            f"{sys.version.split()[0]}; {versions}.",
            "",
            "## Tests: `pytest -m gpu tests/trainer/test_gpu.py`",
            "```",
            tests.strip(),
            "```",
            "",
            "## A step: `python -m bench.trainer.compare --work qwen3-4b --device cuda --profile`",
            "```",
            step.strip(),
            "```",
            "",
        ]
    )


def main(command: str, *files: str) -> None:
    if command == "check":
        found = problem()
        if found:
            sys.exit(f"error: {found}")
    else:
        tests, step = (Path(file).read_text() for file in files)
        print(report(tests, step))


if __name__ == "__main__":
    main(*sys.argv[1:])
