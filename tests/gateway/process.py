"""Runs the gateway as a process against an API server that holds one served model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import IO, Any

import aiohttp
from dev.apiserver import ApiServer
from tests.gateway.world import condition

from espalier.api.meta import API_VERSION

PATIENCE_SECONDS = 60


@asynccontextmanager
async def started(
    environment: Mapping[str, str], log: int | IO[bytes] = PIPE
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "espalier.gateway"),
        env={**os.environ, **environment},
        stderr=log,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(session: aiohttp.ClientSession, url: str, wanted: str) -> None:
    """Asks until the answer contains a text; the test's patience is the limit."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                async with session.get(url) as reply:
                    if wanted in await reply.text():
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def logged(process: Process, message: str) -> None:
    """Reads the log until this message."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while json.loads(await process.stderr.readline())["message"] != message:
            pass


def apply(server: ApiServer, namespace: str, *objects: dict[str, Any]) -> None:
    for body in objects:
        server.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(body))
        if "status" in body:
            server.kubectl(
                *("patch", body["kind"], body["metadata"]["name"], "-n", namespace),
                *("--subresource=status", "--type=merge"),
                *("-p", json.dumps({"status": body["status"]})),
            )


def manifests(port: int, digest: str) -> list[dict[str, Any]]:
    """A model whose head serves a checkpoint on one ready pod."""
    spec = {
        "source": {"base": {"image": "registry.example/model:1"}},
        "storage": {"persistentVolumeClaim": {"claimName": "weights"}},
    }
    labels = {
        "app.kubernetes.io/managed-by": "espalier",
        "espalier.dev/model": "arith",
        "espalier.dev/role": "rollout",
    }
    container = {"name": "main", "image": "x", "ports": [{"containerPort": port}]}
    current = {"name": "arith-000001", "step": 1, "digest": digest, "epoch": 1}
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "TrainableModel",
            "metadata": {"name": "arith"},
            "spec": spec,
        },
        {
            "apiVersion": API_VERSION,
            "kind": "CheckpointHead",
            "metadata": {"name": "arith"},
            "spec": {"modelRef": {"name": "arith"}, "mode": "Track"},
            "status": {"epoch": 1, "epochCause": "1/Track", "current": current},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "arith-rollout-0", "labels": labels},
            "spec": {"containers": [container]},
            "status": {
                "podIP": "127.0.0.1",
                "podIPs": [{"ip": "127.0.0.1"}],
                "conditions": [condition("Ready", "True")],
            },
        },
    ]


def training(port: int) -> list[dict[str, Any]]:
    """A client-driven run, and the pod of its trainer."""
    spec = {
        "modelRef": {"name": "arith"},
        "driver": "Client",
        "loss": {"name": "importance_sampling"},
        "learningRate": "1e-4",
        "steps": 1000,
    }
    labels = {
        "app.kubernetes.io/managed-by": "espalier",
        "espalier.dev/model": "arith",
        "espalier.dev/role": "trainer",
    }
    container = {"name": "main", "image": "x", "ports": [{"containerPort": port}]}
    address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "TrainingRun",
            "metadata": {"name": "arith"},
            "spec": spec,
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "arith-trainer-0", "labels": labels},
            "spec": {"containers": [container]},
            "status": {**address, "conditions": [condition("Ready", "True")]},
        },
    ]


def signing_key(private_key: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "espalier-signing-key"},
        "stringData": {"private.pem": private_key},
    }
