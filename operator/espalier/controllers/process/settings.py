"""The operator's settings, from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from espalier.core.manifests.installation import HubSettings, Images
from espalier.core.served_namespaces import VARIABLE, served

REQUIRED = {
    "POD_NAMESPACE": "the operator's own namespace",
    VARIABLE: "the namespaces to serve, separated by commas",
    "POD_NAME": "the operator's own pod, its identity in the election",
    "ESPALIER_IMAGE_TRAINER": "the trainer's image",
    "ESPALIER_IMAGE_ROLLOUT": "the rollouts' image",
    "ESPALIER_IMAGE_RUNNER": "the runner's image",
    "ESPALIER_GATEWAY_URL": "the gateway's URL inside the cluster",
}


HEALTH_PORT = "ESPALIER_HEALTH_PORT"


class SettingsError(Exception):
    """The environment lacks something, or has something wrong."""


@dataclass(frozen=True)
class Settings:
    """``namespaces`` are those that are served."""

    namespace: str
    identity: str
    namespaces: tuple[str, ...]
    images: Images
    gateway_url: str
    health_port: int = 8080
    hub: HubSettings = field(default_factory=HubSettings)
    pull_secrets: tuple[str, ...] = ()
    assigned_ids: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """The settings of an environment; SettingsError names what is missing or wrong."""
        missing = [
            f"{name} ({what})" for name, what in REQUIRED.items() if not environment.get(name)
        ]
        if missing:
            raise SettingsError(f"set {', '.join(missing)}")
        own = environment["POD_NAMESPACE"]
        try:
            namespaces = served(environment[VARIABLE], own)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        return cls(
            namespace=own,
            identity=environment["POD_NAME"],
            namespaces=tuple(sorted(namespaces)),
            images=Images(
                trainer=environment["ESPALIER_IMAGE_TRAINER"],
                rollout=environment["ESPALIER_IMAGE_ROLLOUT"],
                runner=environment["ESPALIER_IMAGE_RUNNER"],
            ),
            gateway_url=environment["ESPALIER_GATEWAY_URL"],
            health_port=int(environment.get(HEALTH_PORT, cls.health_port)),
            hub=HubSettings(
                endpoint=environment.get("ESPALIER_HUB_ENDPOINT", ""),
                http_proxy=environment.get("ESPALIER_HUB_HTTP_PROXY", ""),
                https_proxy=environment.get("ESPALIER_HUB_HTTPS_PROXY", ""),
                no_proxy=environment.get("ESPALIER_HUB_NO_PROXY", ""),
                ca_config_map=environment.get("ESPALIER_HUB_CA_CONFIG_MAP", ""),
                ca_key=environment.get("ESPALIER_HUB_CA_KEY", "") or HubSettings.ca_key,
                patience_seconds=int(
                    environment.get("ESPALIER_HUB_PATIENCE_SECONDS", HubSettings.patience_seconds)
                ),
            ),
            pull_secrets=tuple(_list(environment, "ESPALIER_IMAGE_PULL_SECRETS")),
            assigned_ids=_pod_ids(environment.get("ESPALIER_POD_IDS", "")),
        )


def _pod_ids(value: str) -> bool:
    """Whether the platform assigns users and groups."""
    if value not in ("", "Fixed", "Assigned"):
        raise SettingsError(f"ESPALIER_POD_IDS is {value!r}: set Fixed or Assigned")
    return value == "Assigned"


def _list(environment: Mapping[str, str], name: str) -> list[str]:
    """The parts of a list that commas separate."""
    parts = (part.strip() for part in environment.get(name, "").split(","))
    return [part for part in parts if part]
