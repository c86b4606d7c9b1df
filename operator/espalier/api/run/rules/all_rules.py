"""All rules of a run's spec, in the order that the CRD has them."""

from __future__ import annotations

from typing import Any

from espalier.api.meta import cel
from espalier.api.run.rules.batch import BATCH
from espalier.api.run.rules.custom_loss import CUSTOM_LOSS
from espalier.api.run.rules.driver import NEEDS, RUNNER, of_runner_alone, unseen_sampling
from espalier.api.run.rules.evaluation import EVALUATION
from espalier.api.run.rules.groups import GROUPS
from espalier.api.run.rules.objective import OBJECTIVE, later_objective
from espalier.api.run.rules.rewards import REWARDS, later_rewards
from espalier.api.run.rules.steps import STEPS


def run_rules() -> dict[str, Any]:
    """The rules, as json_schema_extra of the spec takes them."""
    rules = cel(
        *NEEDS, *REWARDS, *RUNNER, *GROUPS, *EVALUATION, *BATCH, *STEPS, *OBJECTIVE, *CUSTOM_LOSS
    )
    rules["x-kubernetes-validations"] += [
        *of_runner_alone(),
        *later_objective(),
        *later_rewards(),
        unseen_sampling(),
    ]
    return rules
