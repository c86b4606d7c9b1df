"""The gateway as a user reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx


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

    def complete(
        self, name: str, prompt: str = "7=", tokens: int = 4
    ) -> tuple[list[int], list[float]]:
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
