"""TRL's algorithms written plainly on this trainer's kernels, so that only the algorithm differs.

What they follow, in TRL 1.16.0:
  padded trunk       trl/trainer/grpo_trainer.py, _get_per_token_logps_and_entropies
  recomputing head   trl/kernels/chunked_logprob.py, ChunkedLogProbFunction
  prefix packing     trl/experimental/async_grpo/packing.py
Micro-batches are padded to their own longest member only, which favours TRL: it pads to that of
the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from bench.trainer.workload import Workload, causal_lm
from peft import LoraConfig, get_peft_model
from torch import Tensor

from espalier.trainer import model as trainer_model
from espalier.trainer.data import Datum
from espalier.trainer.head import CHUNK_ELEMENTS, Evaluated, _logits
from espalier.trainer.model import Policy

IGNORED = -100


class _RecomputedHead(torch.autograd.Function):
    """Keeps only the normaliser, and computes the logits of each chunk again in backward."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, tau: float
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part in _chunks(len(targets), weight):
            logits = _scaled(hidden[part], weight, bias, wide, tau)
            normaliser[part] = logits.logsumexp(dim=1)
            logits -= normaliser[part].unsqueeze(1)
            logprobs[part] = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            entropy[part] = -(logits.exp().unsqueeze(1) @ logits.unsqueeze(2)).flatten()
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.tau = tau
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        result = torch.empty_like(hidden)
        for part in _chunks(len(targets), weight):
            logits = _scaled(hidden[part], weight, bias, normaliser.dtype, ctx.tau)
            residual = logits.sub_(normaliser[part].unsqueeze(1)).exp_().neg_()
            chosen = targets[part].unsqueeze(1)
            residual.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=residual.dtype))
            residual *= upstream[0][part].unsqueeze(1) / ctx.tau
            result[part] = residual.to(weight.dtype) @ weight
        return result, None, None, None, None


def _chunks(rows: int, weight: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS[weight.device.type] // weight.shape[0])
    return (slice(start, start + size) for start in range(0, rows, size))


def _scaled(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype, tau: float
) -> Tensor:
    logits = _logits(hidden, weight, wide)
    if bias is not None:
        logits += bias.to(wide)
    return logits.div_(tau)


def recomputed(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> Evaluated:
    """As espalier.trainer.head.evaluate, with a third multiplication instead of kept rows."""
    logprobs, entropy = _RecomputedHead.apply(hidden, weight, bias, targets, temperature)
    return Evaluated(logprobs, entropy)


@contextmanager
def recomputing_head() -> Iterator[None]:
    """The trainer's packed path with TRL's head: AsyncGRPO's algorithm."""
    with mock.patch.object(trainer_model, "evaluate", recomputed):
        yield


def plain_twin(work: Workload, policy: Policy) -> Any:
    """An unmodified Hugging Face and PEFT model on the policy's own weights."""
    dtype, device = policy._head.weight.dtype, policy.device
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=work.rank,
        lora_alpha=2 * work.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    twin = get_peft_model(causal_lm(work, dtype, device), config)
    ours = dict(policy._peft.named_parameters())
    theirs = dict(twin.named_parameters())
    assert set(ours) == set(theirs)
    for name, parameter in theirs.items():
        parameter.data = ours[name].data
    return twin.train()


def checkpointed(model: Any, on: bool) -> None:
    """Gradient checkpointing of every decoder layer: the default of both TRL trainers."""
    if on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def padded(datums: Sequence[Datum], device: torch.device) -> dict[str, Tensor]:
    """Prompts padded on the left and completions on the right; [B, P + C] each.

    ``labels`` holds the completion tokens, ``sampling`` and ``advantage`` what goes with them.
    """
    before = max(len(datum.prompt) for datum in datums)
    width = before + max(len(datum.output) for datum in datums)
    shape = (len(datums), width)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    sampling = torch.zeros(shape, dtype=torch.float64)
    advantage = torch.zeros_like(sampling)
    for row, datum in enumerate(datums):
        start, stop = before - len(datum.prompt), before + len(datum.output)
        ids[row, start:stop] = torch.tensor(datum.prompt + datum.output)
        mask[row, start:stop] = 1
        labels[row, before:stop] = ids[row, before:stop]
        sampling[row, before:stop] = torch.tensor(datum.sampling_logprobs, dtype=torch.float64)
        advantage[row, before:stop] = datum.advantage
    rows = {
        "ids": ids, "mask": mask, "labels": labels, "sampling": sampling, "advantage": advantage
    }  # fmt: skip
    return {name: value.to(device) for name, value in rows.items()}


def padded_step(twin: Any, datums: Sequence[Datum], micro_batch: int, *, full_logits: bool) -> None:
    """Adds the gradient of the summed importance-sampling loss, as GRPOTrainer computes it.

    ``full_logits``: log_softmax over every position, as plain Hugging Face code does.
    """
    device = next(twin.parameters()).device
    for start in range(0, len(datums), micro_batch):
        rows = padded(datums[start : start + micro_batch], device)
        labels = rows["labels"][:, 1:]
        wanted = labels != IGNORED
        inputs = {"input_ids": rows["ids"], "attention_mask": rows["mask"], "use_cache": False}
        if full_logits:
            table = twin(**inputs).logits[:, :-1].log_softmax(dim=-1)
            logprobs = table.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)[wanted]
        else:
            lm = twin.base_model.model
            hidden = lm.get_decoder()(**inputs).last_hidden_state[:, :-1][wanted]
            weight = lm.get_output_embeddings().weight
            logprobs = recomputed(hidden, weight, None, labels[wanted], 1.0).logprobs
        sampling = rows["sampling"][:, 1:][wanted].to(logprobs.dtype)
        advantage = rows["advantage"][:, 1:][wanted].to(logprobs.dtype)
        loss = -((logprobs - sampling).exp() * advantage).sum()
        loss.backward()
