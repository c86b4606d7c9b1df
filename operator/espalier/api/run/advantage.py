"""How rewards become advantages."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import Type, cel, newly

Estimator = Literal["GroupMean", "LeaveOneOut", "None"]
Scale = Literal["None", "GroupStd", "BatchStd"]


def _rules() -> ConfigDict:
    found = cel(
        (
            "!has(self.estimator) || self.estimator != 'None' || !has(self.scale)"
            " || self.scale != 'GroupStd'",
            "scale GroupStd needs a group, and estimator None takes none into account: choose "
            "GroupMean, or scale None or BatchStd",
            ".scale",
        ),
        (
            "!has(self.source) || self.source != 'Precomputed' || !has(self.estimator)"
            " || self.estimator == 'GroupMean'",
            "estimator belongs to source Estimated: remove it, or let advantages be estimated",
            ".estimator",
        ),
    )
    found["x-kubernetes-validations"].append(
        newly(
            "!has(self.source) || self.source != 'Precomputed' || !has(self.scale)"
            " || self.scale == 'None'",
            "scale belongs to source Estimated: remove it, or let advantages be estimated",
            ".scale",
            unless="before == self",
        )
    )
    return ConfigDict(json_schema_extra=found)


class Advantage(Type):
    """How rewards become advantages."""

    source: Literal["Estimated", "Precomputed"] = Field(
        default="Estimated",
        description="source is Estimated (by the estimator, from rewards) or, with driver "
        "Client alone, Precomputed (its script gives one for each token).",
    )
    estimator: Estimator = Field(
        default="GroupMean",
        description="estimator is GroupMean (reward minus the mean of its group), LeaveOneOut "
        "(reward minus the mean of the others of its group) or None (the reward itself).",
    )
    scale: Scale = Field(
        default="None",
        description="scale is None, GroupStd to divide by the standard deviation of the group's "
        "rewards, or BatchStd to divide by that of all rewards sent in one forward-backward. "
        "Where rewards do not spread, scaled advantages are 0.",
    )

    model_config = _rules()
