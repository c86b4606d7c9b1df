"""What a check breaks on is refused by the field that is not of its type, and quotes nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi._compat import ModelField
from pydantic import BaseModel, model_validator
from starlette.testclient import TestClient

from espalier.sampler.unreadable_body import CONTRADICTION, NO_OBJECT, misfit, refusing

SECRET = "what nobody else may read"


class Structure(BaseModel):
    regex: str = ""


class Asked(BaseModel):
    structure: Structure | None = None
    names: list[str] = []
    count: int = 1

    @model_validator(mode="before")
    @classmethod
    def _hurried(cls, given: Any) -> Any:
        """As vLLM's: it takes the form of a field for granted."""
        if given.get("structure") is not None:
            given["structure"].get("regex")
        return given | {"count": 6 // given.get("count", 1)}


class MistakeError(Exception):
    pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(ModelField, "validate", refusing(ModelField.validate))
    app = FastAPI()

    @app.post("/")
    async def take(asked: Asked) -> int:
        if asked.names:
            raise MistakeError
        return asked.count

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("body", "place", "said"),
    [
        ({"structure": SECRET}, ["body", "structure"], "structure is not of its type"),
        ({"structure": [SECRET]}, ["body", "structure"], "structure is not of its type"),
        ({"count": 0}, ["body"], CONTRADICTION),
        ([SECRET], ["body"], NO_OBJECT),
    ],
)
def test_a_body_on_which_a_check_breaks_is_refused_by_its_field(
    client: TestClient, caplog: pytest.LogCaptureFixture, body: Any, place: list[str], said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = client.post("/", json=body)
    (found,) = answer.json()["detail"]
    assert (answer.status_code, found["loc"]) == (422, place)
    assert found["msg"].startswith(said)
    assert SECRET not in answer.text
    assert "A check broke on a body" in caplog.text and SECRET not in caplog.text


def test_what_is_taken_and_what_breaks_later_stay_as_they_were(client: TestClient) -> None:
    assert client.post("/", json={"count": 2}).json() == 3
    assert client.post("/", json={"names": ["a"]}).status_code == 500


def test_what_a_check_raises_on_purpose_keeps_its_own_answer() -> None:
    def refuse(self: Any, value: Any) -> Any:
        raise MistakeError

    with pytest.raises(MistakeError):
        refusing(refuse, (MistakeError,))(None, {})


def test_of_a_union_the_first_misfit_is_named() -> None:
    class Other(BaseModel):
        kind: int = 0

    assert misfit(Asked | Other, {"names": "x"})[0] == "names"
    assert misfit(Asked | Other, {"kind": "x"})[0] == "kind"
    assert misfit(Asked, {"names": ["x"]}) == ("", CONTRADICTION)
