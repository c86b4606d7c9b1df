"""The trainer's settings, from the environment variables that the operator sets on its pod."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Json, SkipValidation
from pydantic_settings import NoDecode

from espalier.api.model.adapter import Adapter
from espalier.core.names import POD_UID, audience
from espalier.environment import Count, EnvironmentSettings, SettingsError, Text
from espalier.identity import PUBLIC_KEYS, TrustedKeys
from espalier.key_file import trusted
from espalier.trainer.problems import UserMistakeError

# A call's trajectories as JSON: a token and its log-prob take about 30 bytes, parsed about ten
# times that. Larger batches go in several calls, whose gradients add.
MAX_BODY_BYTES = 128 << 20
# No kernel, no sync of a healthy volume and no lock takes this long without any CPU time.
STUCK_SECONDS = 300


class TrainerSettings(EnvironmentSettings):
    """What the operator set; ``base`` is a digest, ``uid`` the pod's own."""

    model: Text = Field(validation_alias="ESPALIER_MODEL", description="the model's name")
    namespace: Text = Field(
        validation_alias="ESPALIER_NAMESPACE", description="the model's namespace"
    )
    uid: Text = Field(validation_alias=POD_UID, description="the pod's own UID")
    volume: Path = Field(
        validation_alias="ESPALIER_VOLUME", description="where the model's volume is mounted"
    )
    base: Text = Field(validation_alias="ESPALIER_BASE", description="the base's digest")
    public_keys: Annotated[SkipValidation[TrustedKeys], NoDecode, BeforeValidator(trusted)] = Field(
        validation_alias=PUBLIC_KEYS,
        description="the public keys of operator and gateway, or the file that holds them",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        validation_alias="ESPALIER_DTYPE",
        description="float32 or bfloat16, by spec.trainer.dtype",
    )
    adapter: Json[Adapter] = Field(
        default_factory=Adapter,
        validation_alias="ESPALIER_ADAPTER",
        description="the model's spec.adapter as JSON",
    )
    max_body_bytes: Count = Field(
        MAX_BODY_BYTES,
        validation_alias="ESPALIER_MAX_BODY_BYTES",
        description=f"a number of bytes above 0, for example {MAX_BODY_BYTES}",
    )
    stuck_seconds: Count = Field(
        STUCK_SECONDS,
        validation_alias="ESPALIER_STUCK_SECONDS",
        description=f"a number of seconds above 0, for example {STUCK_SECONDS}",
    )

    @property
    def audience(self) -> str:
        """The audience that tokens for this trainer carry."""
        return audience(self.namespace, self.model, "trainer", self.uid)


def read_settings(environment: Mapping[str, str]) -> TrainerSettings:
    """Raises UserMistakeError naming the variables that are missing or wrong."""
    try:
        return TrainerSettings.read(environment)
    except SettingsError as error:
        raise UserMistakeError("InvalidSettings", error.detail, error.remedy) from error
