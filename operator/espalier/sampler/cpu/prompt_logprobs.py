"""Log-probs of prompts on CPU: each row by its own request's adapter, a few rows at a time.

vLLM 0.32 computes the logits of a prompt with the mapping of the sampled tokens, one row per
request: the rows of a prompt then have no adapter, or another request's. It also takes the logits
of a whole prompt at once, which is gigabytes for a long prompt and a large vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors

from espalier.sampler.cpu.lora_ops import check_source

# Of the float32 logits in memory at a time; their log-probs take as much again.
CHUNK_BYTES = 64 * 2**20


def prompt_logprobs(
    runner: Any, hidden_states: torch.Tensor, num_scheduled_tokens: Mapping[str, int]
) -> dict[str, LogprobsTensors]:
    """Replaces ``GPUModelRunner._get_prompt_logprobs_dict``; the signature is vLLM's.

    Args:
        runner: of the model; holds which requests want log-probs, and how many for each token.
        hidden_states: (tokens of the step, hidden), the requests one after another.
        num_scheduled_tokens: tokens of the step by request.

    Returns:
        By request whose prompt ends in this step: log-probs at temperature 1 of its tokens but
        the first, (prompt tokens - 1, top + 1), the token's own in column 0.
    """
    finished: dict[str, LogprobsTensors] = {}
    for request_id, top in list(runner.num_prompt_logprobs.items()):
        request = runner.requests[request_id]
        scheduled = num_scheduled_tokens.get(request_id)
        # Preempted in mid-prompt, or given as embeddings, which have no tokens to score.
        if scheduled is None or request.prompt_token_ids is None:
            continue
        prompt, begin = request.prompt_token_ids, request.num_computed_tokens
        scores = request.in_progress_prompt_logprobs_cpu
        if scores is None:
            scores = LogprobsTensors.empty_cpu(len(prompt) - 1, top + 1)
            request.in_progress_prompt_logprobs_cpu = scores
        # The last token of a prompt predicts the first that is sampled.
        left = len(prompt) - 1 - begin
        rows = max(0, min(scheduled, left))
        index = runner.input_batch.req_id_to_index[request_id]
        offset = int(runner.query_start_loc.np[index])
        _score(
            runner,
            hidden_states[offset : offset + rows],
            torch.tensor(prompt[begin + 1 : begin + 1 + rows], dtype=torch.int64),
            index,
            LogprobsTensors(*(part[begin : begin + rows] for part in _parts(scores))),
        )
        if scheduled > left:
            finished[request_id] = scores
            del runner.num_prompt_logprobs[request_id]
            request.in_progress_prompt_logprobs_cpu = None
    return finished


def _score(
    runner: Any, hidden: torch.Tensor, targets: torch.Tensor, index: int, into: LogprobsTensors
) -> None:
    """Write the scores of one request's rows; ``targets`` are the tokens that followed them."""
    top = into.logprobs.shape[1] - 1
    size = max(1, CHUNK_BYTES // (4 * runner.model_config.get_vocab_size()))
    for start in range(0, len(targets), size):
        chunk = slice(start, start + size)
        rows = hidden[chunk]
        if runner.lora_config is not None:
            _map_to_adapter_of(runner, index, len(rows))
        logits = runner.model.compute_logits(rows)
        if runner.model_config.logprobs_mode in ("raw_logits", "processed_logits"):
            values = logits.to(torch.float32)
        else:
            values = runner.sampler.compute_logprobs(logits)
        found = runner.sampler.gather_logprobs(values, top, targets[chunk])
        for target, part in zip(_parts(into), _parts(found), strict=True):
            target[chunk].copy_(part)


def _map_to_adapter_of(runner: Any, index: int, rows: int) -> None:
    """Make the next logits those of ``rows`` rows of one request; the next step maps again."""
    adapter = int(runner.input_batch.request_lora_mapping[index])
    loaded = set(runner.input_batch.lora_id_to_lora_request.values())
    runner._set_active_loras((adapter,) * rows, (adapter,) * rows, loaded)


def _parts(scores: LogprobsTensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return scores.logprob_token_ids, scores.logprobs, scores.selected_token_ranks


def install() -> None:
    """Replace vLLM's method in this process; raises UnknownSourceError. Idempotent."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner  # noqa: PLC0415
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # noqa: PLC0415

    check_source(GPUModelRunner._get_prompt_logprobs_dict)
    check_source(GPUModelRunner._set_active_loras)
    CPUModelRunner._get_prompt_logprobs_dict = prompt_logprobs
