"""Whether spans are recorded and where they go, by OpenTelemetry's standard variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from espalier.environment import EnvironmentSettings

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
TIMEOUT = "OTEL_EXPORTER_OTLP_TIMEOUT"
SERVICE_NAME = "OTEL_SERVICE_NAME"
RESOURCE_ATTRIBUTES = "OTEL_RESOURCE_ATTRIBUTES"
_DISABLED, _EXPORTER = "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"

_PROTOCOL, _SAMPLER, _RATIO = (
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
_PROPAGATORS = "OTEL_PROPAGATORS"
# What pods of models are told as their operator is. Not headers, which may hold a key, nor paths
# of certificates, nor its name.
_PASSED_ON = (
    *(ENDPOINT, TRACES_ENDPOINT, TRACES_PROTOCOL, TIMEOUT, RESOURCE_ATTRIBUTES),
    *(_PROTOCOL, _SAMPLER, _RATIO, _PROPAGATORS, "OTEL_EXPORTER_OTLP_COMPRESSION"),
)

Protocol = Literal["http/protobuf"]
Sampler = Literal[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]


class TelemetrySettings(EnvironmentSettings):
    """What decides whether spans go out, where to, and of which traces.

    The SDK would go on with a default where it does not understand one of these; here it is
    refused. What remains (headers, certificates, time-outs, queues) the SDK reads itself.
    """

    endpoint: str = Field(
        "", pattern="^(https?://.+)?$", validation_alias=ENDPOINT, description="a collector's URL"
    )
    traces_endpoint: str = Field(
        "",
        pattern="^(https?://.+)?$",
        validation_alias=TRACES_ENDPOINT,
        description="a collector's URL with the path of traces",
    )
    exporter: Literal["otlp", "none"] = Field(
        "otlp", validation_alias=_EXPORTER, description="otlp or none"
    )
    protocol: Protocol = Field(
        "http/protobuf",
        validation_alias=_PROTOCOL,
        description="http/protobuf, and the endpoint to the collector's port for it (4318)",
    )
    traces_protocol: Protocol = Field(
        "http/protobuf",
        validation_alias=TRACES_PROTOCOL,
        description="http/protobuf, and the endpoint to the collector's port for it (4318)",
    )
    sampler: Sampler = Field(
        "parentbased_always_on",
        validation_alias=_SAMPLER,
        description="always_on, always_off or traceidratio, each also after parentbased_",
    )
    ratio: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        validation_alias=_RATIO,
        description="the share of traces to record, 0 to 1",
    )
    propagators: str = Field(
        "tracecontext",
        validation_alias=_PROPAGATORS,
        description="a list with tracecontext: no other header carries traces here",
    )

    @field_validator("propagators")
    @classmethod
    def _by_traceparent(cls, text: str) -> str:
        if "tracecontext" not in [name.strip() for name in text.split(",")]:
            raise ValueError(f"{text!r} leaves out tracecontext")
        return text


def spans_endpoint(environment: Mapping[str, str]) -> str:
    """Where spans go; empty where none are recorded.

    Raises:
        SettingsError: a variable is not understood, or asks for what is not built here.
    """
    named = environment.get(TRACES_ENDPOINT) or environment.get(ENDPOINT)
    if not named or environment.get(_DISABLED, "").strip().lower() == "true":
        return ""
    settings = TelemetrySettings.read(environment)
    if settings.exporter == "none":
        return ""
    return settings.traces_endpoint or f"{settings.endpoint.rstrip('/')}/v1/traces"


def resource(
    environment: Mapping[str, str], service: str, attributes: Mapping[str, str]
) -> dict[str, str]:
    """What a process says of itself beside the variables: a name unless they give one."""
    given = environment.get(RESOURCE_ATTRIBUTES, "")
    named = environment.get(SERVICE_NAME) or "service.name=" in given
    return {**attributes, **({} if named else {"service.name": service})}


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for the pods that a process starts; none where it records no spans itself."""
    if not spans_endpoint(environment):
        return {}
    return {name: environment[name] for name in _PASSED_ON if environment.get(name)}
