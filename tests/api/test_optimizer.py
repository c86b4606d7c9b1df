"""An optimizer declared in Git reaches the trainer whole."""

from __future__ import annotations

from espalier.api.run.optimizer import Optimizer
from espalier.api.wire.declared import DeclaredOptimizer
from espalier.api.wire.step import OptimStepRequest


def test_every_field_of_the_spec_has_its_place_on_the_wire() -> None:
    declared = Optimizer(
        beta1="0.1", beta2="0.2", epsilon="0.3", weight_decay="0.4", gradient_clip_norm="0.5"
    )
    config = declared.config()
    assert config == {
        "beta1": 0.1,
        "beta2": 0.2,
        "eps": 0.3,
        "weight_decay": 0.4,
        "grad_clip_norm": 0.5,
    }
    assert DeclaredOptimizer(**config).model_dump() == config
    step = OptimStepRequest(learning_rate=1, **config).model_dump()
    assert {name: step[name] for name in config} == config
