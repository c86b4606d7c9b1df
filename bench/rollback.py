"""Warm rollback: from the edited spec to the first answer of the old weights.

Moves a head between two checkpoints N times on the cluster in use and prints how many seconds
the slug took to answer with the other weights: from the start of `kubectl patch`, and from its end.

    python bench/rollback.py --head arith --old arith-000002 --new arith-000020
Needs ESPALIER_GATEWAY_URL, ESPALIER_TOKEN and KUBECONFIG. The head ends as it began: mode Track.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time

import httpx

PROMPT = "What is 12 + 7?"


def patch(options: argparse.Namespace, spec: dict[str, object]) -> None:
    """Edits the head's spec as a user would."""
    body = json.dumps({"spec": spec})
    command = ["kubectl", "-n", options.namespace, "patch", "checkpointhead", options.head]
    subprocess.run([*command, "--type=merge", "-p", body], check=True, capture_output=True)


def fingerprint(client: httpx.Client, model: str) -> tuple[list[int], list[float]] | None:
    """Greedy tokens and log-probs of one token, which tell weights apart; None on an error."""
    body = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "return_token_ids": True,
    }
    reply = client.post("/v1/completions", json=body)
    if reply.status_code != 200:
        return None
    choice = reply.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def measure(options: argparse.Namespace, client: httpx.Client, name: str) -> tuple[float, float]:
    """One move: seconds from before and from after kubectl."""
    wanted = fingerprint(client, f"{options.head}@{name}")
    assert wanted, f"{name} does not answer"
    began = time.monotonic()
    patch(options, {"mode": "Pin", "checkpointRef": {"name": name}, "onPin": "Pause"})
    edited = time.monotonic()
    while fingerprint(client, options.head) != wanted:
        if time.monotonic() - edited > 60:
            raise SystemExit(f"{options.head} did not serve {name} within 60 s")
    answered = time.monotonic()
    return answered - began, answered - edited


def main() -> None:
    """Prints the figures of each move and their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", default="espalier-demo")
    parser.add_argument("--head", default="arith")
    parser.add_argument("--old", default="arith-000002")
    parser.add_argument("--new", default="arith-000020")
    parser.add_argument("--moves", type=int, default=10)
    options = parser.parse_args()
    headers = {"Authorization": f"Bearer {os.environ['ESPALIER_TOKEN']}"}
    figures = []
    url = os.environ["ESPALIER_GATEWAY_URL"]
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        for move in range(options.moves):
            figures.append(measure(options, client, options.old if move % 2 == 0 else options.new))
            print(f"move {move + 1}: {figures[-1][0]:.3f} s, {figures[-1][1]:.3f} s after kubectl")
    patch(options, {"mode": "Track"})
    whole, after = (statistics.median(column) for column in zip(*figures, strict=True))
    print(
        f"rollback median: {whole:.3f} s from the start of kubectl, {after:.3f} s from its return"
    )


if __name__ == "__main__":
    main()
