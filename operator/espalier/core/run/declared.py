"""What a client-driven run in Git binds its client to: what its spec gives, and nothing else."""

from __future__ import annotations

from espalier.api.meta import decimal
from espalier.api.objective import Correction, Kl
from espalier.api.trainingrun import TrainingRun, TrainingRunSpec
from espalier.api.wire.declared import Declared, DeclaredOptimizer
from espalier.core.run.learning_rate import declared_schedule


def declared(run: TrainingRun) -> Declared | None:
    """What the commands of a run's client must say; None where it may say anything.

    A runner reads the spec itself at every step, and may be a step behind an edit.
    """
    spec = run.spec
    given = spec.model_fields_set
    if spec.driver != "Client":
        return None
    found = Declared(
        run=run.metadata.name,
        loss_fn=spec.loss.name if spec.loss is not None else None,
        loss_fn_config=spec.loss.config() if spec.loss is not None else {},
        aggregation=spec.loss.aggregation if spec.loss is not None else None,
        aggregation_constant=spec.loss.aggregation_constant if spec.loss is not None else None,
        importance_level=spec.loss.importance_level if spec.loss is not None else None,
        ratio_anchor=spec.loss.ratio_anchor if spec.loss is not None else None,
        entropy_coefficient=decimal(spec.loss.entropy_coefficient)
        if spec.loss is not None
        else None,
        correction=_correction(spec) if "off_policy_correction" in given else None,
        kl=Kl.of(spec.kl) if "kl" in given else None,
        learning_rate=decimal(spec.learning_rate) if spec.learning_rate is not None else None,
        learning_rate_schedule=declared_schedule(spec),
        optimizer=DeclaredOptimizer(**spec.optimizer.config()) if "optimizer" in given else None,
        advantage_source=spec.advantage.source if "advantage" in given else None,
        advantage_estimator=spec.advantage.estimator if "advantage" in given else None,
        advantage_scale=spec.advantage.scale if "advantage" in given else None,
        group_size=spec.group_size if "group_size" in given else None,
        temperature=decimal(spec.sampling.temperature) if "sampling" in given else None,
        max_tokens=spec.sampling.max_tokens if "sampling" in given else None,
    )
    return found if found != Declared(run=run.metadata.name) else None


def _correction(spec: TrainingRunSpec) -> Correction:
    return Correction.of(spec.off_policy_correction)
