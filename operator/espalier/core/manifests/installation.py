"""What every child needs to know of this installation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from espalier.core.names import RUNNER_ACCOUNT

# Caches of compilers need some of it. An image may have the weights of the largest bases.
TMP_SIZE, COPY_SIZE = "16Gi", "1Ti"
# The ConfigMap of each served namespace that holds the public keys, and where pods mount it.
KEYS_CONFIG_MAP = "espalier-public-keys"
KEYS_FIELD = "keys.json"
KEYS_DIRECTORY = "/etc/espalier/keys"
KEYS_FILE = f"{KEYS_DIRECTORY}/{KEYS_FIELD}"


@dataclass(frozen=True)
class Images:
    """Image references by role; the importer runs in the trainer's."""

    trainer: str
    rollout: str
    runner: str


@dataclass(frozen=True)
class HubSettings:
    """How importers reach the Hugging Face hub; empty: as the hub's client does by itself.

    ``ca_config_map`` names a ConfigMap of the model's namespace that has all trusted CAs (PEM)
    under ``ca_key``. An importer gives up after ``patience_seconds`` without one more byte.
    """

    endpoint: str = ""
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    ca_config_map: str = ""
    ca_key: str = "ca.crt"
    patience_seconds: int = 900


@dataclass(frozen=True)
class ChildSettings:
    """Images, the keys that pods verify tokens with, and where the gateway is.

    ``public_keys`` is KEYS_FILE where pods mount it, else what ``identity.PublicKeys.text`` writes;
    ``pull_secrets`` are names of
    Secrets, in the model's namespace, that every pod pulls with. ``assigned_ids``: the platform
    gives each pod its user and groups, as OpenShift does, and refuses pods that name their own.
    ``tmp_size`` and ``copy_size`` are what a pod's /tmp, and the copy of an image's files, may take
    of the node's disk; a pod beyond it is evicted. ``telemetry``: variables by which trainers,
    rollouts and runners record spans.
    """

    images: Images
    public_keys: str
    gateway_url: str
    runner_service_account: str = RUNNER_ACCOUNT
    hub: HubSettings = field(default_factory=HubSettings)
    pull_secrets: tuple[str, ...] = ()
    assigned_ids: bool = False
    tmp_size: str = TMP_SIZE
    copy_size: str = COPY_SIZE
    telemetry: Mapping[str, str] = field(default_factory=dict)
