"""The fused LoRA layer is PEFT's, value and gradients; what it does not know stays PEFT's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from tests.trainer import tiny
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from espalier.trainer.batch.data import Datum
from espalier.trainer.batch.packing import pack
from espalier.trainer.policy import self_check
from espalier.trainer.policy.lora_linear import FusedLinear, fuse, fusible
from espalier.trainer.policy.policy import Policy

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def model(*, base_bias: bool = True, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Two linears with adapters that change them; the same on every call."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 10, base_bias), nn.SiLU(), nn.Linear(10, 4, base_bias))
    values = {"r": 3, "lora_alpha": 5, "target_modules": ["0", "2"]} | config
    made = get_peft_model(layers.to(dtype), LoraConfig(**values))
    scatter(made)
    return made


def scatter(made: Any) -> None:
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape))


def fused(made: Any) -> Any:
    fuse(fusible(made), fused=True)
    return made


def count(made: Any) -> int:
    return sum(isinstance(module, FusedLinear) for module in made.modules())


def stepped(made: Any, x: Tensor) -> list[Tensor]:
    """The output, the input's gradient and the gradients of all that is trained."""
    given = x.clone().requires_grad_()
    torch.manual_seed(1)
    result = made(given)
    (result.sin() * torch.arange(4)).sum().backward()
    assert given.grad is not None
    trained = [p.grad for p in made.parameters() if p.grad is not None]
    return [result.detach(), given.grad, *trained]


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 6), (2, 5, 6), (1, 6)])
def test_the_fused_layer_computes_what_pefts_does(
    bias: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    plain, other = (model(base_bias=bias).to(dtype) for _ in range(2))
    x, tolerance = inputs(*shape).to(dtype), TOLERANCE[dtype]
    assert count(fused(other)) == 2
    expected, found = stepped(plain, x), stepped(other, x)
    assert len(found) == 6
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_the_fast_path_is_fused_and_the_padded_one_that_it_is_checked_against_is_not() -> None:
    policy = Policy(tiny.causal_lm(), tiny.ADAPTER, torch.device("cpu"))
    assert policy.warning is None
    (row,) = pack([Datum((1, 2), (3,), (), 0.0, 0.0, 0, None)], 64)
    policy.evaluate(row)
    assert count(policy.causal_lm) == 2 * 7
    policy.warning = self_check.padded("SelfCheckDiffers", "")
    policy.evaluate(row)
    assert count(policy.causal_lm) == 0


def test_a_fused_layer_that_computes_wrongly_sends_the_trainer_to_the_padded_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(self: LoraLinear, x: Tensor) -> Tensor:
        return LoraLinear.forward(self, x) * 1.01

    monkeypatch.setattr(FusedLinear, "forward", wrong)
    warning = Policy(tiny.causal_lm(), tiny.ADAPTER, torch.device("cpu")).warning
    assert warning is not None
    assert warning.reason == "SelfCheckDiffers"


def test_an_input_without_gradient_gets_none() -> None:
    """As the first layer's, whose input comes from a frozen embedding."""
    made, x = fused(model()), inputs(7, 6)
    made(x).sum().backward()
    assert x.grad is None
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({}, torch.bfloat16),
        ({"lora_dropout": 0.5}, torch.float32),
        ({"lora_bias": True}, torch.float32),
        ({"bias": "all"}, torch.float32),
        ({"use_dora": True}, torch.float32),
        ({"target_modules": ["0"], "modules_to_save": ["2"]}, torch.float32),
    ],
    ids=["narrow base", "dropout", "adapter bias", "trained bias", "DoRA", "full module"],
)
def test_layers_that_the_fused_forward_is_not_exact_for_stay_pefts_own(
    config: dict[str, Any], dtype: torch.dtype
) -> None:
    plain, other = (model(dtype=dtype, **config) for _ in range(2))
    fused(other)
    assert count(other) == (1 if "modules_to_save" in config else 0)
    x = inputs(7, 6).to(dtype)
    for mine, theirs in zip(stepped(other, x), stepped(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_layers_that_are_not_plain_linears_stay_pefts_own() -> None:
    layers = nn.Sequential(nn.Embedding(9, 6), Conv1D(10, 6))
    config = LoraConfig(r=3, target_modules=["0", "1"], fan_in_fan_out=True)
    assert count(fused(get_peft_model(layers, config))) == 0


def test_a_tied_weight_is_its_layers_own_base() -> None:
    """Two layers over one weight each add their own update."""

    def tied() -> Any:
        torch.manual_seed(0)
        one, other = nn.Linear(4, 4), nn.Linear(4, 4)
        other.weight = one.weight
        made = get_peft_model(nn.Sequential(one, other), LoraConfig(target_modules=["0", "1"]))
        scatter(made)
        return made

    plain, found = stepped(tied(), inputs(7, 4)), stepped(fused(tied()), inputs(7, 4))
    for mine, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_several_adapters_at_once_are_pefts_own_sum() -> None:
    def several() -> Any:
        made = model()
        made.add_adapter("other", LoraConfig(r=2, target_modules=["0", "2"]))
        made.base_model.set_adapter(["default", "other"])
        scatter(made)
        return made

    plain, other = several(), fused(several())
    assert count(other) == 2
    x = inputs(7, 6)
    for mine, theirs in zip(stepped(other, x), stepped(plain, x), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("state", ["disabled", "merged"])
def test_an_adapter_that_is_switched_off_or_merged_is_not_added(state: str) -> None:
    x, plain, made = inputs(7, 6), model(), fused(model())
    for each in (plain, made):
        if state == "merged":
            each.merge_adapter()
        else:
            each.base_model.disable_adapter_layers()
    assert torch.equal(made(x), plain(x))
    assert count(made) == 2


def test_a_second_derivative_is_refused() -> None:
    x = inputs(7, 6).requires_grad_()
    (first,) = torch.autograd.grad(fused(model())(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
