"""What a run optimizes, as the fields of a forward-backward."""

from __future__ import annotations

from typing import Any

from espalier.api.meta import decimal
from espalier.api.objective import Correction, Kl
from espalier.api.trainingrun import TrainingRunSpec
from espalier.core.names import BASE


def objective(spec: TrainingRunSpec) -> dict[str, Any]:
    """The fields of ForwardBackwardRequest that a run's spec sets, but for the batch itself."""
    loss, _ = spec.recipe
    return {
        "loss_fn": loss.name,
        "loss_fn_config": loss.config() or None,
        "aggregation": loss.aggregation,
        "aggregation_constant": loss.aggregation_constant,
        "importance_level": loss.importance_level,
        "ratio_anchor": loss.ratio_anchor,
        "entropy_coefficient": decimal(loss.entropy_coefficient),
        "correction": Correction.of(spec.off_policy_correction),
        "kl": Kl.of(spec.kl),
        "advantage_estimator": spec.advantage.estimator,
        "advantage_scale": spec.advantage.scale,
    }


def reference(spec: TrainingRunSpec) -> str | None:
    """The reference policy of a run, as a forward names it; None without one."""
    found = spec.kl.reference
    if found is None:
        return None
    return BASE if found.checkpoint_ref is None else found.checkpoint_ref.name
