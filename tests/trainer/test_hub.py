"""Downloads with the hub's real client: they end, go on where they stopped, and say what is wrong.

Each runs as the importer does, in a process of its own: the client reads its environment once.
Where only the download matters, only that is run.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dev.pki import Authority
from tests.trainer import hub_server, tiny
from tests.trainer.hub_server import NAME, REVISION, Hub
from tests.trainer.proxy_server import Proxy

from espalier.core.volume import imports_of
from espalier.trainer.volume.checkpoint_store import CheckpointStore

MIB = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How an import ended, and after how many seconds."""

    code: int
    message: dict[str, Any]
    seconds: float
    log: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model in a directory, with weights of 4 MiB."""
    directory = tmp_path_factory.mktemp("model")
    tiny.write_model(directory, vocabulary=15_000)
    return directory


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with hub_server.of(model) as serving:
        yield serving


def run(
    hub: Hub, volume: Path, *, revision: str = REVISION, name: str = NAME, **env: str
) -> Outcome:
    """The importer as its Job runs it, and place after it."""
    log = volume / "message"
    volume.mkdir(exist_ok=True)
    log.write_text("")
    environment = {
        **of_the_client(hub, volume),
        "ESPALIER_VOLUME": str(volume),
        "ESPALIER_MODEL": "arith",
        "ESPALIER_TERMINATION_LOG": str(log),
        **env,
    }
    started = time.monotonic()
    said = ""
    for module in ("importer", "place"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                f"espalier.trainer.jobs.{module}",
                "--hugging-face",
                f"{name}@{revision}",
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said += done.stderr
        if done.returncode:
            break
    text = log.read_text()
    assert text, said
    return Outcome(done.returncode, json.loads(text), time.monotonic() - started, said)


def of_the_client(hub: Hub, home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "home"),
        "ESPALIER_HUB_PATIENCE_SECONDS": "3",
    }


@dataclass(frozen=True)
class Downloaded:
    """The files that came, and what was said meanwhile."""

    files: dict[str, bytes]
    log: str


def download(hub: Hub, scratch: Path, **env: str) -> Downloaded:
    """The importer's download of everything, which must succeed."""
    target = scratch / "target"
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.hub_download", f"{NAME}@{REVISION}", str(target)],
        env=of_the_client(hub, scratch) | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [path for path in target.rglob("*") if path.is_file()]
    files = {path.relative_to(target).as_posix(): path.read_bytes() for path in found}
    return Downloaded(files, done.stderr)


def weights(hub: Hub) -> bytes:
    return hub.files["model.safetensors"]


def test_a_base_of_the_hub_is_what_the_hub_has(hub: Hub, tmp_path: Path) -> None:
    """A private one, whose token nobody else sees."""
    hub.token, hub.gated = "hf_right", True
    outcome = run(hub, tmp_path / "volume", **TOKEN)
    assert (outcome.code, outcome.message["revision"]) == (0, REVISION)
    stored = CheckpointStore(tmp_path / "volume", "t").verify("base", outcome.message["digest"])
    assert {n: (stored.path / n).read_bytes() for n in stored.manifest["files"]} == hub.files
    assert not imports_of(tmp_path / "volume", "arith").exists()
    assert {token for _, _, token in hub.seen} == {"hf_right"}
    assert "hf_right" not in outcome.log + json.dumps(outcome.message)


def test_a_download_that_is_cut_twice_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [MIB + 1000, MIB + 3000]
    assert download(hub, tmp_path).files == hub.files
    assert hub.ranges() == ["", f"bytes={MIB}-", f"bytes={2 * MIB}-"]
    assert hub.served_bytes < 2 * sum(len(content) for content in hub.files.values())


def test_the_next_process_goes_on_with_what_the_last_one_left(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = [MIB + 1000, *[0] * 100]
    failed = run(hub, tmp_path / "volume")
    assert (failed.code, failed.message["reason"]) == (1, "HubUnreachable")
    hub.cuts.clear()
    hub.seen.clear()
    assert run(hub, tmp_path / "volume").code == 0
    assert hub.ranges() == [f"bytes={MIB}-"]


def test_a_busy_hub_is_asked_again_when_it_says(hub: Hub, tmp_path: Path) -> None:
    hub.answers = [(429, {}), (500, {})]
    hub.after_listing = [(503, {"Retry-After": "2"})]
    done = download(hub, tmp_path, ESPALIER_HUB_PATIENCE_SECONDS="60")
    assert done.files == hub.files
    for said in ("answers 429; again in 1 s", "answers 500; again in 2 s", "asks to wait 2 s"):
        assert said in done.log


@pytest.mark.parametrize("place", ["list", "file"])
def test_a_hub_that_stays_busy_ends_the_try_with_its_last_word(
    hub: Hub, tmp_path: Path, place: str
) -> None:
    busy = (503, {"Retry-After": "3600"})
    hub.answers = [busy] if place == "list" else []
    if place == "file":
        hub.after_listing = [busy]
    outcome = run(hub, tmp_path / "volume")
    assert (outcome.code, outcome.message["reason"]) == (1, "HubBusy")
    assert "answers 503, and asks to wait 3600 s" in outcome.message["detail"]
    assert "spec.source.base.huggingFace" in outcome.message["detail"]


def test_a_hub_that_is_away_ends_the_try_with_the_networks_word(hub: Hub, tmp_path: Path) -> None:
    outcome = run(hub, tmp_path / "volume", HF_ENDPOINT="http://127.0.0.1:9")
    assert (outcome.code, outcome.message["reason"]) == (1, "HubUnreachable")
    assert "refused" in outcome.message["detail"]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("a company's own")


def served_by_tls(model: Path, authority: Authority, tmp_path: Path) -> Hub:
    """The hub's mirror behind a certificate of the company's own authority."""
    certificate, key = authority.issue("mirror", server=True)
    (tmp_path / "server.pem").write_bytes(certificate + key)
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem")
    return hub_server.of(model, tls=tls)


def through(proxy: Proxy, excepted: str = "") -> dict[str, str]:
    """What the chart's values make of a proxy; programs disagree on the case."""
    given = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url, "NO_PROXY": excepted}
    return given | {name.lower(): value for name, value in given.items()}


def test_a_mirror_of_ones_own_authority_is_reached_through_a_proxy(
    model: Path, authority: Authority, tmp_path: Path
) -> None:
    with Proxy() as proxy, served_by_tls(model, authority, tmp_path) as hub:
        bundle = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        assert download(hub, tmp_path, **through(proxy), **bundle).files == hub.files
        assert set(proxy.asked) == {hub.url.removeprefix("https://")}


@pytest.mark.exhaustive
def test_a_proxy_takes_plain_requests_too_and_not_what_is_excepted(
    hub: Hub, tmp_path: Path
) -> None:
    with Proxy() as proxy:
        assert download(hub, tmp_path / "plain", **through(proxy)).files == hub.files
        assert set(proxy.asked) == {hub.url.removeprefix("http://")}
        proxy.asked.clear()
        direct = through(proxy, excepted="127.0.0.1")
        assert download(hub, tmp_path / "direct", **direct).files == hub.files
        assert not proxy.asked


@pytest.mark.exhaustive
def test_an_untrusted_certificate_ends_the_try_and_names_the_bundle(
    model: Path, authority: Authority, tmp_path: Path
) -> None:
    with served_by_tls(model, authority, tmp_path) as hub:
        outcome = run(hub, tmp_path / "volume")
    assert (outcome.code, outcome.message["reason"]) == (1, "HubUnreachable")
    assert "CERTIFICATE_VERIFY_FAILED" in outcome.message["detail"]
    assert "hub.* in the chart's values for a mirror, proxy or CA" in outcome.message["remedy"]


TOKEN = {"ESPALIER_BASE_TOKEN": "hf_right"}
REFUSALS: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    "private, no token": ({"token": "hf_right"}, {}, "TokenMissing", "tokenSecretRef"),
    "gated, no token": ({"gated": True}, {}, "TokenMissing", "is gated"),
    "gated, no licence": (
        {"gated": True, "licensed": False},
        TOKEN,
        *("LicenceNotAccepted", f"accept its licence at http://127.0.0.1:PORT/{NAME}"),
    ),
    "a wrong token": (
        {"token": "hf_right"},
        {"ESPALIER_BASE_TOKEN": "hf_wrong"},
        *("TokenRefused", "spec.source.base.huggingFace.tokenSecretRef"),
    ),
    "a token without the right": (
        {"answers": [(403, {"X-Error-Message": "fine-grained"})]},
        TOKEN,
        *("TokenForbidden", "fine-grained"),
    ),
    "no such repository": ({}, {"name": "owner/none", **TOKEN}, "RepositoryNotFound", "owner/none"),
    "no such revision": ({}, {"revision": "d" * 40}, "RevisionNotFound", "d" * 40),
    "offline": ({}, {"HF_HUB_OFFLINE": "1"}, "HubOffline", "HF_HUB_OFFLINE"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_a_fault_that_only_a_person_can_fix_ends_at_once_with_its_own_message(
    hub: Hub, tmp_path: Path, case: tuple[dict[str, Any], dict[str, str], str, str]
) -> None:
    behaviour, given, reason, says = case
    vars(hub).update(behaviour)
    outcome = run(hub, tmp_path / "volume", **given)
    assert (outcome.code, outcome.message["reason"]) == (64, reason)
    text = f"{outcome.message['detail']}: {outcome.message['remedy']}"
    assert says.replace("127.0.0.1:PORT", hub.url.removeprefix("http://")) in text
    assert "hf_" not in text + outcome.log
    assert [*imports_of(tmp_path / "volume", "arith").iterdir()] == []


def test_a_token_that_the_machine_happens_to_have_is_not_sent(hub: Hub, tmp_path: Path) -> None:
    assert download(hub, tmp_path, HF_TOKEN="hf_ambient").files == hub.files
    assert {token for _, _, token in hub.seen} == {""}


def test_other_bytes_than_the_hub_promises_are_not_imported(hub: Hub, tmp_path: Path) -> None:
    hub.swapped = {"model.safetensors": weights(hub)[:-1] + b"!"}
    outcome = run(hub, tmp_path / "volume")
    assert (outcome.code, outcome.message["reason"]) == (1, "DownloadDamaged")
    assert "model.safetensors" in outcome.message["detail"]
    assert not list((tmp_path / "volume" / "bases").glob("sha256-*"))


@pytest.mark.parametrize("name", ["../outside.json", "/outside.json"])
def test_a_hub_cannot_write_outside_of_the_download(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.files = {**hub.files, name: b"{}"}
    outcome = run(hub, tmp_path / "volume")
    assert (outcome.code, outcome.message["reason"]) == (64, "BaseUnreadable")
    assert name in outcome.message["detail"]


def test_a_download_larger_than_the_claim_is_not_begun(hub: Hub, tmp_path: Path) -> None:
    hub.claimed = {"model.safetensors": 40 << 40}
    outcome = run(hub, tmp_path / "volume")
    assert outcome.code == 64
    assert outcome.message["reason"] in {"VolumeFull", "FileTooLarge"}
    assert "GiB" in outcome.message["detail"]
    assert hub.ranges() == []


def test_the_same_weights_in_another_form_are_left_behind(hub: Hub, tmp_path: Path) -> None:
    wanted = hub.files
    hub.files = {**wanted, "consolidated.safetensors": weights(hub)}
    assert download(hub, tmp_path).files == wanted
    assert [path for path, _, _ in hub.seen if "consolidated" in path] == []
