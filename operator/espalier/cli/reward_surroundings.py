"""What the rewards of a run reach from a person's machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from espalier.cli.kubectl import Kubectl
from espalier.cli.options import Access
from espalier.client import GatewayClient, Patience
from espalier.runner.open_rewards import Surroundings, invalid


def modules_of(known: Mapping[str, Mapping[str, str]], cluster: Kubectl) -> Callable[..., str]:
    """Reads modules of ConfigMaps: of a manifest's own, by name and key, else of the cluster."""

    def read(name: str, key: str) -> str:
        held = known.get(name, {})
        return held[key] if key in held else cluster.config_map(name, key)

    return read


def surroundings(access: Access, namespace: str, module: Callable[[str, str], str]) -> Surroundings:
    """Judges are asked through the gateway; Services of the cluster are not reached from here."""

    def service(name: str, port: int, path: str) -> str:
        raise invalid(
            "http.serviceRef",
            f"Service {name} is reached from inside the cluster alone, not by this command",
            "Read rollout/reward/<name>/mean of the run's steps, or use another kind of reward",
        )

    def judge(name: str, patience: Patience) -> GatewayClient:
        return GatewayClient(access.url, f"{namespace}/{name}", access.token, patience=patience)

    return Surroundings(module, service, judge)
