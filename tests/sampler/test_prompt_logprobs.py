"""Log-probs of prompts that come in several steps and are computed in chunks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.sample.sampler import Sampler

from espalier.sampler.cpu import prompt_logprobs as cpu_prompt_logprobs
from espalier.sampler.cpu.prompt_logprobs import prompt_logprobs

VOCABULARY, HIDDEN = 11, 4
PROMPT = [3, 1, 4, 1, 5, 9, 2]


class Runner:
    """The parts of vLLM's runner that scoring reads, with one head and vLLM's own sampler."""

    def __init__(self, wanted: dict[str, int]) -> None:
        torch.manual_seed(1)
        self.weight = torch.randn(VOCABULARY, HIDDEN)
        self.rows: list[int] = []
        self.num_prompt_logprobs = wanted
        self.requests = {name: request(PROMPT) for name in wanted}
        order = {name: index for index, name in enumerate(wanted)}
        self.input_batch = SimpleNamespace(req_id_to_index=order)
        self.query_start_loc = SimpleNamespace(np=np.zeros(len(wanted), dtype=np.int32))
        self.lora_config = None
        self.model_config = SimpleNamespace(
            get_vocab_size=lambda: VOCABULARY, logprobs_mode="processed_logprobs"
        )
        self.sampler = Sampler
        self.model = self

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(hidden))
        return hidden @ self.weight.T


def request(prompt: list[int]) -> Any:
    return SimpleNamespace(
        prompt_token_ids=prompt, num_computed_tokens=0, in_progress_prompt_logprobs_cpu=None
    )


def expected(runner: Runner, hidden: torch.Tensor) -> torch.Tensor:
    scores = torch.log_softmax(hidden @ runner.weight.T, -1)[:-1]
    return scores.gather(1, torch.tensor(PROMPT[1:])[:, None])[:, 0]


@pytest.mark.parametrize("steps", [[7], [3, 4], [1, 1, 5], [6, 1]])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_chunks_and_steps_give_the_scores_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, steps: list[int], rows: int
) -> None:
    monkeypatch.setattr(cpu_prompt_logprobs, "CHUNK_BYTES", 4 * VOCABULARY * rows)
    runner, hidden = Runner({"a": 2}), torch.randn(len(PROMPT), HIDDEN)
    done: dict[str, Any] = {}
    for step in steps:
        assert not done
        begin = runner.requests["a"].num_computed_tokens
        done = prompt_logprobs(runner, hidden[begin : begin + step], {"a": step})
        runner.requests["a"].num_computed_tokens += step
    torch.testing.assert_close(done["a"].logprobs[:, 0], expected(runner, hidden))
    assert done["a"].logprob_token_ids[:, 0].tolist() == PROMPT[1:]
    assert done["a"].logprobs.shape == (len(PROMPT) - 1, 3)
    assert max(runner.rows) <= rows
    assert not runner.num_prompt_logprobs


def test_a_request_that_is_not_in_the_step_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was preempted in mid-prompt."""
    runner, hidden = Runner({"a": 0, "b": 0}), torch.randn(len(PROMPT), HIDDEN)
    assert list(prompt_logprobs(runner, hidden, {"b": len(PROMPT)})) == ["b"]
    assert runner.num_prompt_logprobs == {"a": 0}


def test_a_prompt_of_one_token_has_no_scores() -> None:
    runner = Runner({"a": 1})
    runner.requests["a"] = request([5])
    done = prompt_logprobs(runner, torch.randn(1, HIDDEN), {"a": 1})
    assert done["a"].logprobs.shape == (0, 2)
    assert runner.rows == []
