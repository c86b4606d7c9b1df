"""Which path each family takes, and that it gives the family's own log-probs and gradients."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tests.trainer import tiny
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.core.model.reported import PADDED_REASONS
from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.policy import self_check
from espalier.trainer.policy.policy import Policy

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 128,
    "initializer_range": 0.2,
}  # fmt: skip
WINDOW = {"sliding_window": 5}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
LOCAL_AND_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"]}
FAST = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"attention_dropout": 0.5}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("qwen2", {"use_sliding_window": True, **WINDOW, **LOCAL_AND_GLOBAL}),
    ("qwen3", {"head_dim": 32}),
    ("mistral", {"sliding_window": None}),
    ("mistral", WINDOW),
    ("gemma", {"head_dim": 16}),
    ("gemma2", {
        **GEMMA, **WINDOW, "attn_logit_softcapping": None, "final_logit_softcapping": None
    }),
    ("gemma3_text", {**GEMMA, **WINDOW, **LOCAL_AND_GLOBAL}),
]  # fmt: skip
PADDED = [
    ("gemma2", {**GEMMA, **WINDOW}, "attn_logit_softcapping"),
    ("gpt_neox", {"rotary_pct": 0.25}, "gpt_neox"),
    # Its layers cannot be computed again, so that memory can only be saved by shorter rows.
    ("gpt_neox_japanese", {"rotary_pct": 0.25}, "gpt_neox_japanese"),
    ("phi", {"partial_rotary_factor": 0.5}, "phi"),
    ("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}, "lfm2"),
]


def made(family: str, changes: dict[str, Any], dtype: torch.dtype) -> Policy:
    """A tiny random model; its norms compute in its own type, not in float32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | {"tie_word_embeddings": False} | changes))
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    causal_lm = AutoModelForCausalLM.from_config(config).to(dtype)
    policy = Policy(causal_lm, tiny.ADAPTER, torch.device("cpu"))
    policy.causal_lm.to(dtype)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape).to(dtype))
    return policy


def keep_wide(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Lets the family's norms compute in float64, where its code narrows to float32."""
    name = family.removesuffix("_text")
    module = sys.modules[f"transformers.models.{name}.modeling_{name}"]
    for attribute, kind in list(vars(module).items()):
        if attribute.endswith("RMSNorm") and isinstance(kind, type):
            zero_centred = attribute.startswith("Gemma")

            def forward(self: Any, x: Tensor, zero_centred: bool = zero_centred) -> Tensor:
                epsilon = getattr(self, "variance_epsilon", None) or self.eps
                scale = 1 + self.weight if zero_centred else self.weight
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * scale

            monkeypatch.setattr(kind, "forward", forward)


def batch() -> list[Datum]:
    """Two prompts; outputs that part at once, later, and continue one another."""
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(1, 128, (90,), generator=generator).tolist()
    one, other = tuple(t[:12]), tuple(t[12:15])
    paths = [
        (one, t[20:30]), (one, t[20:24] + t[30:37]), (one, t[40:41]),
        (one + tuple(t[40:43]), t[43:50]), (other, t[50:52]), (other, t[60:85]),
    ]  # fmt: skip
    return [Datum(p, tuple(o), (), 0.0, 0.0, 0, None) for p, o in paths]


def naive(policy: Policy, datum: Datum, attention: str) -> Tensor:
    """Log-probs by the family's own code, one whole sequence at a time."""
    policy._trunk.config._attn_implementation = attention
    ids = torch.tensor([datum.prompt + datum.output])
    logits = policy._causal_lm(input_ids=ids, use_cache=False).logits[0] / 0.7
    scored = logits[len(datum.prompt) - 1 : -1].log_softmax(dim=-1)
    return scored.gather(1, torch.tensor(datum.output)[:, None]).squeeze(1)


def gradients(policy: Policy) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in policy.parameters.items() if p.grad is not None}
    policy.drop_gradients()
    assert found.keys() == policy.parameters.keys()
    return found


def errors(policy: Policy, budget: int, attention: str) -> tuple[float, float]:
    """Largest differences of log-probs, and of gradients by their tensor's largest."""
    data = batch()
    plain = [naive(policy, datum, attention) for datum in data]
    weights = [torch.linspace(-1, 2, len(lp), dtype=lp.dtype) for lp in plain]
    torch.cat(plain).backward(torch.cat(weights))
    expected = gradients(policy)
    off = 0.0
    for row in pack(tiny.at(0.7, data), budget):
        scored = policy.evaluate(row).logprobs
        order = [span.datum for span in row.spans]
        difference = scored.detach() - torch.cat([plain[i] for i in order]).detach()
        off = max(off, float(difference.abs().max()))
        scored.backward(torch.cat([weights[i] for i in order]))
    ours = gradients(policy)
    return off, max(
        float((ours[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected
    )


@pytest.mark.parametrize(("family", "changes"), FAST)
@pytest.mark.parametrize("budget", [1000, 20])
def test_fast_families_equal_their_own_code_in_float64(
    monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any], budget: int
) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SIZES | changes)))
    keep_wide(monkeypatch, family)
    policy = made(family, changes, torch.float64)
    assert policy.warning is None
    off, gradient_off = errors(policy, budget, "sdpa")
    assert off <= 1e-12
    assert gradient_off <= 1e-12


@pytest.mark.parametrize(("family", "changes"), FAST)
def test_fast_families_equal_their_own_code_in_float32(
    family: str, changes: dict[str, Any]
) -> None:
    off, gradient_off = errors(made(family, changes, torch.float32), 1000, "sdpa")
    assert off <= 1e-5
    assert gradient_off <= 1e-5


@pytest.mark.parametrize(("family", "changes", "named"), PADDED)
def test_other_families_run_padded_and_say_so(
    family: str, changes: dict[str, Any], named: str
) -> None:
    policy = made(family, changes, torch.float32)
    assert policy.warning is not None
    known = family in self_check.FAST_FAMILIES
    assert policy.warning.reason == ("UnknownSetting" if known else "UnknownFamily")
    assert policy.warning.reason in PADDED_REASONS
    assert named in policy.warning.detail
    off, gradient_off = errors(policy, 1000, "eager")
    assert off <= 1e-5
    assert gradient_off <= 1e-5


def test_a_base_that_mixes_tokens_otherwise_runs_padded() -> None:
    odd = tiny.causal_lm()
    decoder = odd.get_decoder()
    plain = decoder.forward

    def summed(*arguments: object, **keywords: object) -> object:
        output = plain(*arguments, **keywords)
        output.last_hidden_state = output.last_hidden_state.cumsum(1)
        return output

    decoder.forward = summed  # type: ignore[method-assign]
    policy = Policy(odd, tiny.ADAPTER, torch.device("cpu"))
    assert policy.warning is not None
    assert "differ from plain ones" in policy.warning.detail


def test_a_datum_does_not_feel_another_of_equal_shape() -> None:
    policy = made("llama", {}, torch.float32)
    data = batch()
    changed = Datum(data[-1].prompt, data[-1].output[:1] + tuple(range(1, 25)), (), 0, 0, 0, None)

    def scored(last: Datum) -> Tensor:
        (row,) = pack([*data[:-1], last], 1000)
        with torch.no_grad():
            logprobs = policy.evaluate(row).logprobs
        return torch.cat([logprobs[s.start : s.stop] for s in row.spans if s.datum != 5])

    assert torch.equal(scored(data[-1]), scored(changed))
