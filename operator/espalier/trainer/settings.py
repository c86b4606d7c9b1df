"""The trainer pod's environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from espalier.api.trainablemodel import Adapter
from espalier.core.names import POD_UID, audience
from espalier.identity import PUBLIC_KEYS, PublicKeys
from espalier.trainer.problems import UserMistakeError

DTYPES = ("float32", "bfloat16")
# A call's trajectories as JSON: a token and its log-prob take about 30 bytes, parsed about ten
# times that. Larger batches go in several calls, whose gradients add.
MAX_BODY_BYTES = 128 << 20
# No kernel, no sync of a healthy volume and no lock takes this long without any CPU time.
STUCK_SECONDS = 300


@dataclass(frozen=True)
class Settings:
    """What the operator set; ``base`` is a digest, ``uid`` the pod's own."""

    model: str
    namespace: str
    uid: str
    volume: Path
    base: str
    public_keys: PublicKeys
    dtype: str
    adapter: Adapter
    max_body_bytes: int = MAX_BODY_BYTES
    stuck_seconds: int = STUCK_SECONDS

    @property
    def audience(self) -> str:
        """The audience that tokens for this trainer carry."""
        return audience(self.namespace, self.model, "trainer", self.uid)


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Raises UserMistakeError naming the variable that is missing or wrong."""
    dtype = environment.get("ESPALIER_DTYPE", "float32")
    if dtype not in DTYPES:
        raise UserMistakeError(
            "InvalidSettings",
            f"ESPALIER_DTYPE is {dtype!r}",
            f"set spec.trainer.dtype to one of {', '.join(DTYPES)}",
        )
    try:
        adapter = Adapter.model_validate_json(environment.get("ESPALIER_ADAPTER", "{}"))
    except ValidationError as error:
        raise UserMistakeError(
            "InvalidSettings", f"ESPALIER_ADAPTER: {error}", "correct spec.adapter"
        ) from error
    try:
        keys = PublicKeys.read(_need(environment, PUBLIC_KEYS))
    except ValueError as error:
        raise UserMistakeError("InvalidSettings", str(error), "the operator sets it") from error
    return Settings(
        model=_need(environment, "ESPALIER_MODEL"),
        namespace=_need(environment, "ESPALIER_NAMESPACE"),
        uid=_need(environment, POD_UID),
        volume=Path(_need(environment, "ESPALIER_VOLUME")),
        base=_need(environment, "ESPALIER_BASE"),
        public_keys=keys,
        dtype=dtype,
        adapter=adapter,
        max_body_bytes=_count(environment, "ESPALIER_MAX_BODY_BYTES", "bytes", MAX_BODY_BYTES),
        stuck_seconds=_count(environment, "ESPALIER_STUCK_SECONDS", "seconds", STUCK_SECONDS),
    )


def _count(environment: Mapping[str, str], name: str, unit: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserMistakeError(
            "InvalidSettings",
            f"{name} is {text!r}",
            f"set it to a number of {unit} above 0, for example {default}",
        )
    return int(text)


def _need(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise UserMistakeError("InvalidSettings", f"{name} is not set", "the operator sets it")
    return value
