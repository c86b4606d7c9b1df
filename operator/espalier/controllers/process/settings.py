"""The operator's settings, from environment variables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from espalier.core.manifests.installation import COPY_SIZE, TMP_SIZE, HubSettings, Images
from espalier.core.served_namespaces import VARIABLE, served
from espalier.environment import Count, EnvironmentSettings, Port

HEALTH_PORT = "ESPALIER_HEALTH_PORT"


class OperatorSettings(EnvironmentSettings):
    """Where the operator runs, what it serves, and what it tells its children."""

    namespace: str = Field(
        validation_alias="POD_NAMESPACE", description="the operator's own namespace"
    )
    identity: str = Field(
        validation_alias="POD_NAME",
        description="the name of the operator's own pod, its identity in the election",
    )
    namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        validation_alias=VARIABLE, description="the namespaces to serve, separated by commas"
    )
    trainer_image: str = Field(
        validation_alias="ESPALIER_IMAGE_TRAINER", description="the trainer's image"
    )
    rollout_image: str = Field(
        validation_alias="ESPALIER_IMAGE_ROLLOUT", description="the rollouts' image"
    )
    runner_image: str = Field(
        validation_alias="ESPALIER_IMAGE_RUNNER", description="the runner's image"
    )
    gateway_url: str = Field(
        validation_alias="ESPALIER_GATEWAY_URL",
        description="the gateway's URL inside the cluster",
    )
    health_port: Port = Field(
        8080, validation_alias=HEALTH_PORT, description="the port of health and metrics"
    )
    hub_endpoint: str = Field(
        "", validation_alias="ESPALIER_HUB_ENDPOINT", description="the URL of a mirror of the hub"
    )
    hub_http_proxy: str = Field(
        "", validation_alias="ESPALIER_HUB_HTTP_PROXY", description="a proxy's URL"
    )
    hub_https_proxy: str = Field(
        "", validation_alias="ESPALIER_HUB_HTTPS_PROXY", description="a proxy's URL"
    )
    hub_no_proxy: str = Field(
        "", validation_alias="ESPALIER_HUB_NO_PROXY", description="hosts reached without proxy"
    )
    hub_ca_config_map: str = Field(
        "", validation_alias="ESPALIER_HUB_CA_CONFIG_MAP", description="a ConfigMap of trusted CAs"
    )
    hub_ca_key: str = Field(
        HubSettings.ca_key,
        validation_alias="ESPALIER_HUB_CA_KEY",
        description="the key of that ConfigMap",
    )
    hub_patience_seconds: Count = Field(
        HubSettings.patience_seconds,
        validation_alias="ESPALIER_HUB_PATIENCE_SECONDS",
        description="the seconds without one more byte after which an import gives up",
    )
    pull_secrets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias="ESPALIER_IMAGE_PULL_SECRETS",
        description="the names of Secrets, separated by commas",
    )
    rotate_after_days: Count = Field(
        90,
        validation_alias="ESPALIER_ROTATE_AFTER_DAYS",
        description="the days after which signing keys are replaced, 1 or more",
    )
    pod_ids: Literal["Fixed", "Assigned"] = Field(
        "Fixed", validation_alias="ESPALIER_POD_IDS", description="Fixed or Assigned"
    )

    tmp_size: str = Field(
        TMP_SIZE,
        validation_alias="ESPALIER_TMP_SIZE",
        description=f"a quantity of bytes for /tmp of each pod, such as {TMP_SIZE}",
    )
    copy_size: str = Field(
        COPY_SIZE,
        validation_alias="ESPALIER_COPY_SIZE",
        description=f"a quantity of bytes for copies of images' files, such as {COPY_SIZE}",
    )

    @field_validator("namespaces", mode="before")
    @classmethod
    def _served(cls, text: str, info: ValidationInfo) -> tuple[str, ...]:
        return tuple(sorted(served(text, info.data.get("namespace", ""))))

    @field_validator("pull_secrets", mode="before")
    @classmethod
    def _split(cls, text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())

    @property
    def images(self) -> Images:
        """Of the operator's children."""
        return Images(self.trainer_image, self.rollout_image, self.runner_image)

    @property
    def hub(self) -> HubSettings:
        """How importers reach the Hugging Face hub."""
        return HubSettings(
            endpoint=self.hub_endpoint,
            http_proxy=self.hub_http_proxy,
            https_proxy=self.hub_https_proxy,
            no_proxy=self.hub_no_proxy,
            ca_config_map=self.hub_ca_config_map,
            ca_key=self.hub_ca_key,
            patience_seconds=self.hub_patience_seconds,
        )

    @property
    def assigned_ids(self) -> bool:
        """Whether the platform gives each pod its user and groups."""
        return self.pod_ids == "Assigned"
