"""Tinker's unmodified SDK with an API key against the cluster: its saves are in the tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import cache
from tests.e2e.gateway import Gateway
from tests.e2e.kubectl import Kubectl
from tests.e2e.manifests import tinker_user
from tests.e2e.run import lineage, served
from tests.tinker.scenarios import drive
from typer.testing import CliRunner

from espalier.cli.main import app

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
# "7=", as the tiny model's tokenizer writes it.
PROMPT = [11, 19]


def issued(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key, from the command line as a user calls it."""
    kubectl.apply(*tinker_user())
    monkeypatch.setenv("KUBECONFIG", str(kubectl.kubeconfig))
    monkeypatch.setenv("PATH", str(cache() / "bin"), prepend=":")
    create = ("keys", "create", "laptop", "--service-account", "tinker")
    done = CliRunner().invoke(app, ["--namespace", kubectl.namespace, *create])
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


async def test_a_model_made_on_demand_is_trained_saved_and_sampled_and_each_step_is_a_checkpoint(  # noqa: PLR0917
    kubectl: Kubectl,
    tiny: str,
    images: dict[str, str],
    gateway: Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = issued(kubectl, monkeypatch)
    base = images["tiny-model"]
    told = await drive(gateway.url, key, tmp_path, "two_steps", base=base, prompt=PROMPT)
    name = f"tk-{told['model'].partition(':')[0].partition('.')[2]}-0"
    assert told["paths"] == [
        f"tinker://{told['model']}/{kind}/two" for kind in ("weights", "sampler_weights")
    ]
    assert told["samples"] == 2
    # vLLM and the trainer agree on every token.
    for sampled, scored in zip(told["sampled"], told["scored"], strict=True):
        assert scored[len(PROMPT) - 1 :] == pytest.approx(sampled, abs=1e-4)

    first, second = lineage(kubectl, name)
    assert [first["spec"]["step"], second["spec"]["step"]] == [1, 2]
    assert "parentRef" not in first["spec"]
    assert second["spec"]["parentRef"]["name"] == first["metadata"]["name"]
    assert {f"tinker://{save['path']}" for save in second["status"]["saves"]} == set(told["paths"])
    assert not first["status"].get("saves")
    served(kubectl, name, second["metadata"]["name"])
    made = kubectl.get("trainablemodel", name)["metadata"]["annotations"]
    assert made["espalier.dev/tinker-base"] == base
    asked = f"system:serviceaccount:{kubectl.namespace}:tinker"
    assert made["espalier.dev/requested-by"] == asked
    kubectl("delete", "trainablemodel", name)
