"""One API key for HUD's and OpenAI's clients, unmodified."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from tests.compat.clients import NEWEST, drive, environment, hud
from tests.compat.stage import NAMESPACE, Stage
from tests.issued_key import issued, secret

from espalier.core.api_keys import Scope

pytestmark = pytest.mark.timeout(900)


async def key_of(stage: Stage, *scopes: Scope) -> str:
    """A key of service account ann, who may do everything."""
    limits = {"scopes": scopes} if scopes else {}
    account = {"metadata": {"name": "ann", "namespace": NAMESPACE}}
    made = await stage.cluster.apply("ServiceAccount", account, manager="kubectl")
    key = issued(NAMESPACE, "ann", made["metadata"]["uid"], **limits)
    # Each is added to those before it.
    await stage.cluster.apply("Secret", secret(NAMESPACE, key), manager=key.id)
    return key.key


async def test_huds_client_trains_by_a_key(stage: Stage, tmp_path: Path) -> None:
    variables = environment(stage.url, await key_of(stage), tmp_path)
    results = dict(await drive(NEWEST, "surface", variables, model="arith"))
    assert results["optim_step"] == [1, "arith-000001", "arith"]
    listed = await hud(NEWEST, variables, "models", "list", "--json")
    assert [model["name"] for model in json.loads(listed.output)] == ["arith"]


async def test_openais_client_samples_by_a_key_and_by_its_scope_alone(stage: Stage) -> None:
    for scope, answered in ((("sample",), True), (("train",), False)):
        key = await key_of(stage, *scope)  # type: ignore[arg-type]
        async with openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key=key) as client:
            ask = client.chat.completions.create(
                model="arith", messages=[{"role": "user", "content": "1+1="}], max_tokens=3
            )
            if answered:
                assert (await ask).choices[0].message.content
                assert [model.id async for model in client.models.list()] == ["arith"]
            else:
                with pytest.raises(openai.PermissionDeniedError, match="limited to train"):
                    await ask
