"""Starts a real rollout server as its pod does; the gateway's and end-to-end tests use it too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from dev.ports import free_port
from filelock import FileLock

from espalier import identity
from espalier.core import names

NAMESPACE = "default"
BAKE_SECONDS = 300


@dataclass
class Rollout:
    """A server process: its address, and clients with tokens of the operator and the gateway."""

    process: subprocess.Popen[bytes]
    url: str
    private_key: str
    audience: str
    log: Path

    def token(self, subject: identity.Subject) -> str:
        return identity.issue(self.private_key, subject, self.audience)

    def headers(self, subject: identity.Subject = "gateway") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(subject)}"}

    def get(self, path: str, subject: identity.Subject = "gateway") -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers(subject), timeout=60)

    def scrape(self) -> str:
        """vLLM's metrics, as Prometheus gets them."""
        token = identity.issue_scrape(self.private_key)
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(self.url + "/metrics", headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.text

    def serve(self, *adapters: str) -> httpx.Response:
        return httpx.post(
            self.url + "/espalier/v1/serve",
            json={"adapters": list(adapters)},
            headers=self.headers("operator"),
            timeout=90,
        )

    def complete(self, model: str, prompt: Any, **parameters: Any) -> httpx.Response:
        return httpx.post(
            self.url + "/v1/completions",
            json={"model": model, "prompt": prompt, "return_token_ids": True, **parameters},
            headers=self.headers(),
            timeout=120,
        )

    def chat(self, model: str, messages: list[Any], **parameters: Any) -> httpx.Response:
        return httpx.post(
            self.url + "/v1/chat/completions",
            json={"model": model, "messages": messages, "return_token_ids": True, **parameters},
            headers=self.headers(),
            timeout=120,
        )

    def stop(self, patience: float = 60) -> int:
        """SIGTERM, and the exit code; fails if the process outlives its patience."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running {patience} s after SIGTERM: {self.log}") from None


def start(
    volume: Path,
    base: str,
    *,
    private_key: str = "",
    model: str = "tiny",
    namespace: str = NAMESPACE,
    uid: str = "uid-1",
    port: int = 0,
    dtype: str = "float32",
    max_model_tokens: int = 256,
    max_adapters: int = 3,
    max_lora_rank: int = 8,
    adapter_type: str = "LoRA",
    tool_call_parser: str = "Auto",
    reasoning_parser: str = "Auto",
    within: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Rollout:
    """Start ``python -m espalier.sampler`` on a free port; does not wait for it.

    ``within`` is a command that becomes the one behind it; ``environment`` is set besides.
    """
    private_key = private_key or identity.generate_private_key()
    port = port or free_port()
    scratch = Path(tempfile.mkdtemp(prefix="rollout-"))
    told = {
        "ESPALIER_MODEL": model,
        "ESPALIER_NAMESPACE": namespace,
        "ESPALIER_POD_UID": uid,
        "ESPALIER_VOLUME": str(volume),
        "ESPALIER_BASE": base,
        "ESPALIER_PUBLIC_KEYS": identity.PublicKeys.of(private_key, private_key).text(),
        "ESPALIER_DTYPE": dtype,
        "ESPALIER_MAX_MODEL_TOKENS": str(max_model_tokens),
        "ESPALIER_MAX_ADAPTERS": str(max_adapters),
        "ESPALIER_MAX_LORA_RANK": str(max_lora_rank),
        "ESPALIER_ADAPTER_TYPE": adapter_type,
        "ESPALIER_TOOL_CALL_PARSER": tool_call_parser,
        "ESPALIER_REASONING_PARSER": reasoning_parser,
        "ESPALIER_PORT": str(port),
        "TMPDIR": str(scratch),
        "VLLM_CACHE_ROOT": str(baked_model_information()),
    }
    log = scratch / "rollout.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "espalier.sampler"],
            env={**os.environ, **told, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    audience = names.audience(namespace, model, "rollout", uid)
    return Rollout(process, f"http://127.0.0.1:{port}", private_key, audience, log)


def baked_model_information() -> Path:
    """What the image has baked in, made once and kept in the cache."""
    cache = Path(os.environ.get("ESPALIER_CACHE", Path.home() / ".cache" / "espalier"))
    root = cache / "vllm"
    # Another worker may ask for it in the same moment.
    with FileLock(cache / "vllm.lock", timeout=2 * BAKE_SECONDS):
        if not (root / "modelinfos").is_dir():
            subprocess.run(
                [sys.executable, "-m", "espalier.sampler.bake", "LlamaForCausalLM"],
                env=os.environ | {"VLLM_CACHE_ROOT": str(root)},
                check=True,
                timeout=BAKE_SECONDS,
            )
    return root


def wait_healthy(rollout: Rollout, seconds: float = 400) -> float:
    """Seconds until /healthz is 200; fails with the log's end when the process ends before that."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if rollout.process.poll() is not None:
            tail = rollout.log.read_text(errors="replace")[-6000:]
            raise AssertionError(f"the server exited with {rollout.process.returncode}:\n{tail}")
        try:
            if httpx.get(rollout.url + "/healthz", timeout=5).status_code == 200:
                return time.monotonic() - started
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"not healthy within {seconds} s: {rollout.log}")
