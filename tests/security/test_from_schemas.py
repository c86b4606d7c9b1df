"""Requests that schemathesis makes: of documents that describe what the routes parse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from bench.fuzzing import openapi
from bench.fuzzing.drawn import of_schemathesis
from tests.security.fuzzing import told
from tests.security.hostile_requests import routes_of
from tests.trainer.test_bad_input import AUDIENCE, PRIVATE
from tests.trainer.test_bad_input import client as trainer

from espalier import identity

__all__ = ["trainer"]

# Their bodies are a Tinker client's, in protobuf or of several forms by the kind, or nothing's.
OTHERWISE = {"/train/tinker/{kind}", "/train/zero-grad", "/train/delivered"}
NO_VLLM: openapi.Schema = {"components": {"schemas": {}}}


async def test_every_body_that_a_trainer_parses_is_described_by_its_type(
    trainer: TestClient[Any, Any],
) -> None:
    routes = routes_of(trainer.app)
    taking = {path for method, path in routes if method == "POST"}
    assert {path for path in taking if openapi.body_of(path) is None} == OTHERWISE
    made = openapi.document(routes, {}, NO_VLLM, "")
    assert made["paths"].keys() == {path for _, path in routes}
    # What is referred to is there.
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(made)))
    assert len(named) > 10
    assert named <= made["components"]["schemas"].keys()


def test_a_completion_is_described_by_vllms_own_schema_and_asks_a_model_that_there_is() -> None:
    own = {"CompletionRequest": {"properties": {"model": {"type": "string"}, "prompt": {}}}}
    given = {"components": {"schemas": own}}
    made = openapi.document([("POST", "/v1/completions")], {}, given, "arith")
    known = made["components"]["schemas"]["CompletionRequest"]["properties"]
    assert known == {"model": {"enum": ["arith"]}, "prompt": {}}


@pytest.mark.packages
async def test_no_request_that_schemathesis_makes_is_too_hostile_for_the_trainer(
    trainer: TestClient[Any, Any], tmp_path: Path
) -> None:
    routes = [route for route in routes_of(trainer.app) if route[1] != "/commits"]
    document = openapi.document(routes, {"id": ["0" * 32]}, NO_VLLM, "")
    made = of_schemathesis(document, 500, tmp_path)
    assert len(made) == 500
    assert len(of_schemathesis(document, 5, tmp_path)) == 5, "fewer than there are routes"
    token = identity.issue(PRIVATE, "gateway", AUDIENCE, 0)
    headers = {"Authorization": f"Bearer {token}"}
    base = str(trainer.make_url("/")).rstrip("/")
    answers = await told(trainer.session, base, made, lambda _: headers)
    assert [answer for answer in answers if answer.fault()] == []
    assert {200, 422} <= {answer.status for answer in answers}
