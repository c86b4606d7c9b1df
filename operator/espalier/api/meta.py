"""What the four kinds share: identifiers, references, conditions, the base of every API type.

Conventions follow the Kubernetes API conventions: decimals are strings, enums CamelCase,
references are ``fooRef: {name}`` in the same namespace, list maps are keyed.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass

from espalier.api.metric_names import MEASURED_MESSAGE, MEASURED_RULE

GROUP = "espalier.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

UNSET = "x-espalier-unset"
FUNCTION_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
DECIMAL_PATTERN = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?$"
# The syntax of core/v1's resource.Quantity, without a sign.
QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


# A CEL rule and its message, and where they are not of the whole node the fieldPath.
Rule = tuple[str, str] | tuple[str, str, str]


def cel(*rules: Rule) -> dict[str, Any]:
    """CEL rules for a schema node."""
    validations = []
    for rule in rules:
        entry = {"rule": rule[0], "message": rule[1]}
        if len(rule) == 3:
            entry["fieldPath"] = rule[2]
        validations.append(entry)
    return {"x-kubernetes-validations": validations}


def newly(rule: str, message: str, field_path: str, unless: str) -> dict[str, Any]:
    """A CEL rule of schema nodes that came after objects did: ``unless`` they break it already.

    Args:
        rule: over ``self``.
        message: for people.
        field_path: that the message is of.
        unless: over ``before``, the object as it was.
    """
    excused = unless.replace("before", "oldSelf.value()")
    return {
        "rule": f"{rule} || (oldSelf.hasValue() && {excused})",
        "message": message,
        "fieldPath": field_path,
        "optionalOldSelf": True,
    }


def without_default(schema: dict[str, Any]) -> None:
    """For json_schema_extra: the API server leaves the field out, so that one can tell it is."""
    schema[UNSET] = True


def explained(pattern: str, message: str, condition: str = "") -> dict[str, Any]:
    """A CEL rule in place of a pattern, whose own message would be no more than the pattern."""
    rule = f"self.matches(r'{pattern}')"
    return cel((f"{rule} && {condition}" if condition else rule, message))


def _decimal(message: str, condition: str = "") -> Any:
    return Field(
        pattern=DECIMAL_PATTERN,
        max_length=32,
        json_schema_extra=explained(DECIMAL_PATTERN, message, condition),
    )


# Decimals are strings because YAML readers disagree on numbers such as 1e-4.
DecimalString = Annotated[str, _decimal('must be a quoted decimal, such as "0.42"')]
PositiveDecimal = Annotated[
    str, _decimal('must be a quoted decimal above 0, such as "1e-4"', "double(self) > 0.0")
]
NonNegativeDecimal = Annotated[
    str, _decimal('must be a quoted decimal of 0 or more, such as "0.1"', "double(self) >= 0.0")
]
UnitDecimal = Annotated[
    str,
    _decimal(
        'must be a quoted decimal from "0" to below "1", such as "0.9"',
        "double(self) >= 0.0 && double(self) < 1.0",
    ),
]
Name = Annotated[
    str,
    Field(
        pattern=NAME_PATTERN,
        min_length=1,
        max_length=63,
        json_schema_extra=explained(
            NAME_PATTERN,
            "must be the name of an object: lower-case letters, digits and '-', beginning and "
            "ending with a letter or digit",
        ),
    ),
]
# Names of Secrets and ConfigMaps may have dots, and their keys more than that.
ResourceName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", min_length=1, max_length=253),
]
DataKey = Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
Digest = Annotated[str, Field(pattern=r"^sha256:[a-f0-9]{64}$", max_length=71)]
# A resource.Quantity: core/v1 takes `cpu: 2` as well as `cpu: "2"`, and so do we.
Quantity = Annotated[
    str,
    Field(
        pattern=QUANTITY_PATTERN,
        max_length=32,
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            **cel(
                (
                    "type(self) == int ? self >= 0 : self.matches(r'" + QUANTITY_PATTERN + "')",
                    'must be a quantity of 0 or more, such as 2, "0.5", "500m" or "1Gi"',
                )
            ),
        },
    ),
    BeforeValidator(lambda given: str(given) if isinstance(given, int) else given),
]
LabelValue = Annotated[
    str, Field(pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$", max_length=63)
]


def list_map(*keys: str) -> dict[str, Any]:
    """Marks a list as a map keyed by the given fields, so that server-side apply merges it."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


_WIRE = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)
# Strings that thousands of objects share.
Shared = Annotated[str, AfterValidator(sys.intern)]


class Type(BaseModel):
    """Base of every API type: frozen, camelCase on the wire, unknown fields refused."""

    model_config = {**_WIRE, "frozen": True}

    def wire(self) -> dict[str, Any]:
        """The camelCase form without unset optional fields, as sent to the API server."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


ATOMIC: dict[str, Any] = {"x-kubernetes-map-type": "atomic"}


# Every object has dozens of these, so a cluster has hundreds of thousands. With slots each takes an
# eighth of the memory of a Type.
@dataclass(config={**_WIRE, "json_schema_extra": ATOMIC}, frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """A reference to an object in the same namespace."""

    name: Annotated[Name, AfterValidator(sys.intern)] = Field(
        description="name of the referenced object in the same namespace."
    )


# Whether a fork takes Adam's moments over from its origin.
OptimizerState = Literal["Keep", "Reset"]


# Bounds of a list of metrics.
METRICS_MOST, METRIC_NAME_CHARS, METRIC_VALUE_CHARS = 128, 64, 32
MeasuredMetric = Annotated[
    str,
    Field(
        min_length=1,
        max_length=METRIC_NAME_CHARS,
        json_schema_extra=cel((MEASURED_RULE, MEASURED_MESSAGE)),
    ),
]


@dataclass(config=_WIRE, frozen=True, slots=True, kw_only=True)
class Metric:
    """One named figure; the value is a decimal string."""

    name: Shared = Field(
        description="name of the metric, for example reward/mean.", max_length=METRIC_NAME_CHARS
    )
    value: str = Field(description="value as a decimal string.", max_length=METRIC_VALUE_CHARS)


@dataclass(config=_WIRE, frozen=True, slots=True, kw_only=True)
class Condition:
    """A condition of the Kubernetes API; Ready, Reconciling and Stalled follow kstatus."""

    type: Shared = Field(description="type of the condition.", max_length=64)
    status: Literal["True", "False", "Unknown"] = Field(
        description="status is True, False or Unknown."
    )
    observed_generation: int = Field(
        default=0, ge=0, description="observedGeneration that the condition was set for."
    )
    last_transition_time: str = Field(
        description="lastTransitionTime is when status last changed.",
        json_schema_extra={"format": "date-time"},
        max_length=32,
    )
    reason: Shared = Field(description="reason is a CamelCase word.", min_length=1, max_length=128)
    message: Shared = Field(description="message for people: cause and remedy.", max_length=4096)


@dataclass(config={**_WIRE, "extra": "ignore"}, frozen=True, slots=True, kw_only=True)
class OwnerReference:
    """The object that another is deleted with."""

    kind: Shared = ""
    uid: Shared = ""


@dataclass(config={**_WIRE, "extra": "ignore"}, frozen=True, slots=True, kw_only=True)
class ObjectMeta:
    """The part of metadata that decisions read."""

    name: str
    namespace: Shared = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[Shared, Shared] = Field(default_factory=dict)
    annotations: dict[Shared, str] = Field(default_factory=dict)
    finalizers: tuple[Shared, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    def goes_with_another(self, kind: str, uid: str) -> bool:
        """Whether an object of that kind with another uid owns this one, and takes it along."""
        return any(owner.kind == kind and owner.uid != uid for owner in self.owner_references)


def decimal(text: str) -> float:
    """The float that a decimal string stands for."""
    return float(Decimal(text))


def decimal_string(value: float) -> str:
    """A short decimal string for a float, for statuses and printed tables."""
    return f"{value:.6g}"
