"""The gateway's settings, from environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from espalier.core.served_namespaces import VARIABLE, served
from espalier.environment import EnvironmentSettings, Port
from espalier.gateway.access.offers import VARIABLE as BASES
from espalier.gateway.access.offers import Offers
from espalier.gateway.access.quotas import Limits


class GatewaySettings(EnvironmentSettings):
    """Where the gateway runs, which namespaces it serves, and which bases it offers."""

    namespace: str = Field(
        validation_alias="POD_NAMESPACE", description="the gateway's own namespace"
    )
    namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        validation_alias=VARIABLE, description="the namespaces to serve, separated by commas"
    )
    port: Port = Field(8000, validation_alias="ESPALIER_PORT", description="a port, 1 to 65535")
    metrics_port: Port = Field(
        8080, validation_alias="ESPALIER_METRICS_PORT", description="a port, 1 to 65535"
    )
    api_server_tokens: bool = Field(
        False,
        validation_alias="ESPALIER_API_SERVER_TOKENS",
        description="true or false: whether tokens of the API server's own audience are taken",
    )
    tls_directory: Path | None = Field(
        None,
        validation_alias="ESPALIER_TLS_DIRECTORY",
        description="the directory of tls.crt and tls.key, or nothing to serve no HTTPS",
    )
    tls_port: Port = Field(
        8443, validation_alias="ESPALIER_TLS_PORT", description="a port, 1 to 65535"
    )
    offers: Annotated[Offers, NoDecode] = Field(
        Offers(), validation_alias=BASES, description="the chart's gateway.bases as JSON"
    )

    quota_requests: int = Field(
        Limits.requests,
        ge=0,
        validation_alias="ESPALIER_QUOTA_REQUESTS",
        description="how many requests a caller may have at a model at once, or 0 for any number",
    )
    quota_tokens_per_minute: int = Field(
        Limits.tokens_per_minute,
        ge=0,
        validation_alias="ESPALIER_QUOTA_TOKENS_PER_MINUTE",
        description="how many tokens a minute a caller may spend at a model, or 0 for any number",
    )
    quota_body_percent: int = Field(
        Limits.body_percent,
        ge=1,
        le=100,
        validation_alias="ESPALIER_QUOTA_BODY_PERCENT",
        description="the percentage of the room for bodies that a caller may hold, 1 to 100",
    )
    quota_connections: int = Field(
        Limits.connections,
        ge=0,
        validation_alias="ESPALIER_QUOTA_CONNECTIONS",
        description="how many connections an address may have open, or 0 for any number",
    )

    @property
    def limits(self) -> Limits:
        """What one caller may take."""
        return Limits(
            self.quota_requests,
            self.quota_tokens_per_minute,
            self.quota_body_percent,
            self.quota_connections,
        )

    @field_validator("namespaces", mode="before")
    @classmethod
    def _served(cls, text: str, info: ValidationInfo) -> tuple[str, ...]:
        return served(text, info.data.get("namespace", ""))

    @field_validator("offers", mode="before")
    @classmethod
    def _offered(cls, text: str, info: ValidationInfo) -> Offers:
        # Without valid namespaces the settings are refused whatever the offers are.
        return Offers.read(text, info.data["namespaces"]) if "namespaces" in info.data else Offers()
