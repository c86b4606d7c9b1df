"""What rewards reach in tests: modules by their text, services and judges by their address."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from espalier.client import GatewayClient, Patience
from espalier.runner.open_rewards import Surroundings
from espalier.runner.scoring.process import COMMAND


def nobody(name: str, patience: Patience) -> GatewayClient:
    raise AssertionError(f"no judge {name} is asked here")


def surroundings(
    *,
    modules: Mapping[str, str] | None = None,
    services: str = "",
    judge: Callable[[str, Patience], GatewayClient] = nobody,
    command: Sequence[str] = COMMAND,
) -> Surroundings:
    """Modules are named ``configmap/key``; ``services`` is the address of every Service."""
    held = modules or {}
    return Surroundings(
        lambda name, key: held[f"{name}/{key}"],
        lambda name, port, path: f"{services}{path}",
        judge,
        command,
    )


def judge_at(url: str) -> Callable[[str, Patience], GatewayClient]:
    """Judges behind one gateway."""

    def made(name: str, patience: Patience) -> GatewayClient:
        return GatewayClient(url, f"default/{name}", "secret", patience=patience)

    return made
