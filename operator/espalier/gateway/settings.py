"""Settings from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from espalier.core.served_namespaces import VARIABLE, served
from espalier.gateway.access.offers import VARIABLE as BASES
from espalier.gateway.access.offers import Offers

PORT = 8000
METRICS_PORT = 8080


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it and says what to set."""


@dataclass(frozen=True)
class Settings:
    """Where the gateway runs and which namespaces it serves."""

    namespace: str
    namespaces: tuple[str, ...]
    port: int
    metrics_port: int
    offers: Offers = field(default_factory=Offers)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Reads POD_NAMESPACE, ESPALIER_NAMESPACES, ESPALIER_BASES and the ports.

        ESPALIER_NAMESPACES is comma separated; the gateway's own namespace is never served.
        ESPALIER_BASES is the chart's ``gateway.bases`` as JSON.
        """
        namespace = environment.get("POD_NAMESPACE", "")
        if not namespace:
            raise SettingsError("POD_NAMESPACE is not set: set it to the gateway's own namespace")
        try:
            namespaces = served(environment.get(VARIABLE, ""), namespace)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        try:
            offers = Offers.read(environment.get(BASES, ""), namespaces)
        except ValueError as error:
            raise SettingsError(f"{BASES} (gateway.bases of the chart): {error}") from error
        return cls(
            namespace=namespace,
            namespaces=namespaces,
            port=_port(environment, "ESPALIER_PORT", PORT),
            metrics_port=_port(environment, "ESPALIER_METRICS_PORT", METRICS_PORT),
            offers=offers,
        )


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise SettingsError(f"{name} is {text!r}: set a port from 1 to 65535")
    return int(text)
