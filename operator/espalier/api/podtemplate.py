"""What a user may set of the pods that serve and train a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from espalier.api.meta import LabelValue, Name, Quantity, Type


class Toleration(Type):
    """A toleration as in core/v1."""

    key: str | None = Field(default=None, description="key of the taint.", max_length=317)
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="operator is Exists or Equal."
    )
    value: str | None = Field(default=None, description="value of the taint.", max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="effect of the taint."
    )


class Resources(Type):
    """Compute resources as in core/v1."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="requests by resource name, as quantities.",
        max_length=16,
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, description="limits by resource name, as quantities.", max_length=16
    )


class PodTemplate(Type):
    """What a user may set of a pod: where it runs and what it gets, never what it may do."""

    resources: Resources | None = Field(
        default=None, description="resources of the main container."
    )
    node_selector: dict[str, LabelValue] | None = Field(
        default=None, description="nodeSelector of the pod.", max_length=32
    )
    tolerations: list[Toleration] | None = Field(
        default=None,
        description="tolerations of the pod.",
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    priority_class_name: Name | None = Field(
        default=None, description="priorityClassName of the pod."
    )
