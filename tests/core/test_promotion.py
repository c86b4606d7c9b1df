"""What may be promoted: a checkpoint of the model, Ready, that reaches the gate."""

from __future__ import annotations

import pytest

from espalier.api.checkpoint import Checkpoint
from espalier.api.checkpointhead import CheckpointHeadSpec, Gate
from espalier.core.head.promotion import PromotionRefusedError, check, newest

GATE = {"metric": "reward/mean", "min": "0.5"}
SPEC = CheckpointHeadSpec.model_validate(
    {"modelRef": {"name": "arith"}, "mode": "Track", "gate": GATE}
)


def checkpoint(
    step: int,
    reward: str = "",
    *,
    model: str = "arith",
    ready: bool = True,
    superseded: bool = False,
    term: int = 1,
) -> Checkpoint:
    said = {"Ready": ready, "Superseded": superseded}
    conditions = [
        {
            "type": kind,
            "status": str(value),
            "reason": "Said",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, value in said.items()
    ]
    metrics = [{"name": "reward/mean", "value": reward}] if reward else []
    return Checkpoint.model_validate(
        {
            "metadata": {"name": f"{model}-{term}-{step}"},
            "spec": {
                "modelRef": {"name": model},
                "step": step,
                "branch": "main",
                "term": term,
                "uri": "pvc://weights/x",
                "digest": f"sha256:{step:064x}",
            },
            "status": {"conditions": conditions, "metrics": metrics},
        }
    )


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (checkpoint(1, "0.49"), "has reward/mean 0.49; the gate asks for 0.5"),
        (checkpoint(1), "has no reward/mean yet: it comes with the next step"),
        (checkpoint(1, "0.9", ready=False), "is not Ready"),
        (checkpoint(1, "0.9", model="other"), "of model other, the head serves arith"),
    ],
)
def test_a_checkpoint_is_refused_with_the_reason(refused: Checkpoint, why: str) -> None:
    with pytest.raises(PromotionRefusedError, match=why):
        check(SPEC, refused)
    with pytest.raises(
        PromotionRefusedError, match=r"none of the . Ready checkpoints of model arith "
    ):
        newest(SPEC, [refused])


def test_the_gate_is_reached_at_its_very_value() -> None:
    check(SPEC, checkpoint(1, "0.50"))


def test_the_newest_that_passes_is_chosen_among_those_that_training_has_not_left_behind() -> None:
    found = [
        checkpoint(1, "0.8"),
        checkpoint(2, "0.6"),
        checkpoint(3, "0.4"),
        checkpoint(9, "0.9", superseded=True),
    ]
    assert newest(SPEC, found).spec.step == 2


def test_a_later_term_is_newer_than_a_higher_step() -> None:
    found = [checkpoint(9, "0.9"), checkpoint(3, "0.9", term=2)]
    assert newest(SPEC, found).spec.term == 2


def test_a_head_without_a_gate_promotes_nothing() -> None:
    spec = SPEC.model_copy(update={"gate": None})
    with pytest.raises(PromotionRefusedError, match=r"add spec\.gate"):
        newest(spec, [checkpoint(1, "0.9")])
    with pytest.raises(PromotionRefusedError, match=r"add spec\.gate"):
        check(spec, checkpoint(1, "0.9"))


def test_a_gate_by_a_metric_of_the_step_promotes_nothing() -> None:
    spec = SPEC.model_copy(
        update={"gate": Gate.model_validate({"metric": "rollout/reward/mean", "min": "0"})}
    )
    with pytest.raises(
        PromotionRefusedError, match=r"spec\.gate\.metric: rollout/reward/mean must be meas"
    ):
        newest(spec, [checkpoint(1, "0.9")])
    with pytest.raises(PromotionRefusedError, match="is of the step that made it"):
        check(spec, checkpoint(1, "0.9"))


def test_a_gate_by_what_nobody_measures_says_what_there_is() -> None:
    spec = SPEC.model_copy(
        update={"gate": Gate.model_validate({"metric": "eval/heldout/reward", "min": "0"})}
    )
    with pytest.raises(
        PromotionRefusedError, match="has eval/heldout/reward; they have reward/mean: train"
    ):
        newest(spec, [checkpoint(1, "0.9"), checkpoint(2)])
    with pytest.raises(PromotionRefusedError, match="has no eval/heldout/reward, only reward/mean"):
        check(spec, checkpoint(1, "0.9"))
