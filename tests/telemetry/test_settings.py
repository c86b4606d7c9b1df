"""The standard variables: off without an endpoint, and what is not understood is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from espalier.environment import SettingsError
from espalier.telemetry.settings import passed_on, resource, spans_endpoint

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ON = {ENDPOINT: "http://collector:4318"}
MAINS = ("gateway", "controllers", "trainer", "runner")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ENDPOINT: ""},
        ON | {"OTEL_SDK_DISABLED": "TRUE"},
        ON | {"OTEL_TRACES_EXPORTER": "none"},
        # Of somebody's metrics or logs.
        {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_nothing_is_recorded_without_an_endpoint_or_where_it_is_switched_off(
    environment: dict[str, str],
) -> None:
    assert spans_endpoint(environment) == ""
    assert passed_on(environment) == {}


def test_spans_go_to_the_endpoint_of_traces_or_below_the_general_one() -> None:
    assert spans_endpoint(ON) == "http://collector:4318/v1/traces"
    traces = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://other/spans"}
    assert spans_endpoint(ON | traces) == "https://other/spans"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (ENDPOINT, "collector:4317", "set OTEL_EXPORTER_OTLP_ENDPOINT to a collector's URL"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "to http/protobuf, and the endpoint to"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "to otlp or none"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "to always_on, always_off or traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "to the share of traces to record, 0 to 1"),
        ("OTEL_PROPAGATORS", "b3", "'b3' leaves out tracecontext"),
    ],
)
def test_what_the_sdk_would_pass_over_is_refused_by_name(
    variable: str, value: str, says: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        spans_endpoint(ON | {variable: value})
    assert variable in str(refused.value)
    assert says in str(refused.value)


def test_a_name_that_the_variables_give_stays() -> None:
    about = {"espalier.model": "arith"}
    assert resource(ON, "espalier-trainer", about) == {**about, "service.name": "espalier-trainer"}
    for named in ({"OTEL_SERVICE_NAME": "mine"}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine"}):
        assert resource(named, "espalier-trainer", about) == about


def test_pods_are_told_what_their_operator_is_but_no_key_and_no_name() -> None:
    ratio = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    own = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret", "OTEL_SERVICE_NAME": "operator"}
    assert passed_on(ON | ratio | own | {"HOME": "/"}) == ON | ratio


@pytest.mark.parametrize("room", MAINS)
def test_no_process_imports_opentelemetry_unless_spans_are_wanted(room: str) -> None:
    program = (
        "import sys\n"
        f"import espalier.{room}.__main__\n"
        "from espalier.telemetry import spans\n"
        f"for wanted in {{}}, {{{ENDPOINT!r}: 'http://127.0.0.1:9'}}:\n"
        "    spans.start(wanted, 'x')\n"
        "    print(any(name.startswith('opentelemetry') for name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False", "True"]
