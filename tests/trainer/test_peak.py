"""What the planner predicts covers what the process uses, without refusing what would fit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("family", "way"),
    # Of Llama, Qwen3 and Gemma the last holds most when layers are computed again.
    [("llama", "plain"), ("gemma", "checkpointed")],
)
def test_a_prediction_is_no_less_than_the_memory_that_is_used_and_at_most_twice_that(
    family: str, way: str
) -> None:
    command = [sys.executable, "-m", "tests.trainer.peak", family, "tiny", way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout)
    assert found["measured"] <= found["predicted"] <= 2 * found["measured"], found
