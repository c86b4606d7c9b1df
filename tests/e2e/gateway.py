"""The gateway as a user reaches it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

Answer = tuple[list[int], list[float]]
SEEN_SECONDS = 30


@dataclass(frozen=True)
class Gateway:
    """The gateway as a user reaches it, with a Kubernetes token."""

    url: str
    token: str

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        """POST with the user's token."""
        return httpx.post(
            self.url + path,
            json=body,
            headers={"Authorization": f"Bearer {self.token}", **headers},
            timeout=120,
        )

    def complete(self, name: str, prompt: str = "7=", tokens: int = 4) -> Answer:
        """Greedy tokens and their log-probs, which identify the weights."""
        reply = self.post(
            "/v1/completions",
            {
                "model": name,
                "prompt": prompt,
                "max_tokens": tokens,
                "temperature": 0,
                "logprobs": 1,
                "return_token_ids": True,
            },
        )
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    def serves(self, slug: str, checkpoint: str) -> Answer:
        """A slug's answer, once the gateway has seen the status of a head that moved."""
        expected = self.complete(f"{slug}@{checkpoint}")
        deadline = time.monotonic() + SEEN_SECONDS
        while (answer := self.complete(slug)) != expected:
            assert time.monotonic() < deadline, f"{slug} answers {answer}, not {expected}"
            time.sleep(0.1)
        return answer
