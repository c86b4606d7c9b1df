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

import numpy as np
import torch
from bench.trainer.workload import Workload, causal_lm
from peft import LoraConfig, get_peft_model
from torch import Tensor

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import NO_PARENT, Row, Span
from espalier.trainer.policy.frozen_lm_head import Evaluated, chunks
from espalier.trainer.policy.lora import Lora
from espalier.trainer.policy.lora_linear import fuse
from espalier.trainer.policy.policy import Policy

IGNORED = -100
# What PEFT calls an adapter that nobody named, in the names of its weights.
ADAPTER = "default"


class _RecomputedHead(torch.autograd.Function):
    """Keeps only the normaliser, and computes the logits of each chunk again in backward."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, tau: float
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        chances = None
        for part, logits in chunks(hidden, weight, bias, tau):
            chances = torch.empty_like(logits) if chances is None else chances
            greatest = logits.amax(dim=1, keepdim=True)
            logits.sub_(greatest)
            exponents = torch.exp(logits, out=chances[: len(logits)])
            total = exponents.sum(dim=1, keepdim=True)
            mean = (exponents.unsqueeze(1) @ logits.unsqueeze(2)).flatten(1) / total
            logprobs[part] = (logits.gather(1, targets[part].unsqueeze(1)) - total.log()).squeeze(1)
            entropy[part] = (total.log() - mean).squeeze(1)
            normaliser[part] = (total.log() + greatest).squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.tau = tau
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        result = torch.empty_like(hidden)
        for part, logits in chunks(hidden, weight, bias, ctx.tau):
            chances = logits.sub_(normaliser[part].unsqueeze(1)).exp_()
            chosen = targets[part].unsqueeze(1)
            residual = chances.scatter_add_(1, chosen, torch.full_like(chances[:, :1], -1.0))
            slope = upstream[0][part].unsqueeze(1) / -ctx.tau
            result[part] = (residual.to(weight.dtype) @ weight) * slope
        return result, None, None, None, None


def recomputed(  # noqa: PLR0917
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    by_entropy: bool = False,
) -> Evaluated:
    """As policy.frozen_lm_head.evaluate, with a third multiplication instead of kept rows."""
    if by_entropy:
        raise ValueError("the baseline has no derivative of the entropy")
    logprobs, entropy = _RecomputedHead.apply(hidden, weight, bias, targets, temperature)
    return Evaluated(logprobs, entropy)


@contextmanager
def without_ours(policy: Policy) -> Iterator[None]:
    """The trainer's packed path with TRL's head and PEFT's own linear layers."""
    fuse(policy._fusible, fused=False)
    with (
        mock.patch.object(policy, "_evaluate_head", recomputed),
        mock.patch.object(policy, "_fusible", []),
    ):
        yield


def token_tries(data: Sequence[Datum], budget: int) -> list[Row]:
    """Rows as TRL packs them: at most ``budget`` unique tokens, and as many trained ones.

    A node is keyed on its token and the next, so a trie forks one token before its samples differ,
    and every sample's last token is forwarded although it predicts nothing.
    """
    rows, trie = [], _Trie()
    for index, datum in enumerate(data):
        if trie.spans and not trie.fits(datum, budget):
            rows.append(trie.row())
            trie = _Trie()
        trie.add(index, datum)
    return [*rows, trie.row()]


class _Trie:
    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int, int | None], int] = {}
        self._places: list[tuple[int, int, int]] = []
        self._reads: list[int] = []
        self._targets: list[int] = []
        self.spans: list[Span] = []

    def fits(self, datum: Datum, budget: int) -> bool:
        node, shared = NO_PARENT, 0
        for token, following in _keys(datum):
            if (node, token, following) not in self._nodes:
                break
            node, shared = self._nodes[node, token, following], shared + 1
        new = len(datum.prompt) + len(datum.output) - shared
        trained = len(self._targets) + len(datum.output)
        return len(self._places) + new <= budget and trained <= budget

    def add(self, index: int, datum: Datum) -> None:
        node, path = NO_PARENT, []
        for depth, (token, following) in enumerate(_keys(datum)):
            key = (node, token, following)
            if key not in self._nodes:
                self._nodes[key] = len(self._places)
                self._places.append((token, depth, node))
            node = self._nodes[key]
            path.append(node)
        start = len(self._targets)
        self._reads += path[len(datum.prompt) - 1 : -1]
        self._targets += datum.output
        self.spans.append(Span(index, start, len(self._targets)))

    def row(self) -> Row:
        tokens, depths, parents = np.array(self._places, dtype=np.int64).T
        reads, targets = np.array([self._reads, self._targets], dtype=np.int64)
        return Row(tokens, depths, parents, reads, targets, tuple(self.spans))


def _keys(datum: Datum) -> Iterator[tuple[int, int | None]]:
    tokens = datum.prompt + datum.output
    return zip(tokens, [*tokens[1:], None], strict=True)


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
    assert isinstance(policy.trained, Lora)
    ours = dict(policy.trained.peft.named_parameters())
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
