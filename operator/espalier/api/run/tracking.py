"""Where a run reports its metrics beside its Checkpoints."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from espalier.api.meta import ResourceName, Type, cel
from espalier.api.source import SecretKey

SINKS = ("wandb", "mlflow", "tensorBoard", "trackio")
_URL = r"^https?://[^\s@/]+(/\S*)?$"
_URL_MESSAGE = "must be a URL with http or https and without a user, such as http://mlflow:5000"


def _url(field: str) -> dict[str, Any]:
    return cel((f"self.matches(r'{_URL}')", f"{field} {_URL_MESSAGE}"))


class Wandb(Type):
    """A run of Weights & Biases."""

    api_key_secret_ref: SecretKey | None = Field(
        default=None,
        description="apiKeySecretRef is the key of W&B, as a key of a Secret. Needed by mode "
        "Online.",
    )
    entity: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="entity is the user or team; the key's own if unset.",
    )
    base_url: str | None = Field(
        default=None,
        alias="baseURL",
        max_length=512,
        description="baseURL of a server of your own; W&B's cloud if unset.",
        json_schema_extra=_url("baseURL"),
    )
    mode: Literal["Online", "Offline"] = Field(
        default="Online",
        description="mode Offline writes to the pod's own disk alone, for `wandb sync` in the pod; "
        "it is gone with the pod.",
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.mode != 'Online' || has(self.apiKeySecretRef)",
                "wandb.mode Online needs apiKeySecretRef: name a Secret and its key, or set mode: "
                "Offline",
                ".apiKeySecretRef",
            )
        )
    )


class MLflowServer(Type):
    """A run of an MLflow server."""

    tracking_uri: str = Field(
        alias="trackingURI",
        max_length=512,
        description="trackingURI of the server, http or https.",
        json_schema_extra=_url("trackingURI"),
    )
    token_secret_ref: SecretKey | None = Field(
        default=None,
        description="tokenSecretRef is a bearer's token for the server, as a key of a Secret.",
    )


class TensorBoardFiles(Type):
    """Event files of TensorBoard."""

    claim_name: ResourceName = Field(
        description="claimName of a PersistentVolumeClaim of the namespace, which the runner's pod "
        "writes to: `<project>/<UID of the run>` in it. The model's own volume is the trainer's "
        "alone."
    )


class TrackioFiles(Type):
    """Files of trackio, which `trackio show` reads."""

    claim_name: ResourceName = Field(
        description="claimName of a PersistentVolumeClaim of the namespace, which the runner's pod "
        "writes to; set TRACKIO_DIR to where it is mounted to look at it. The run is named by its "
        "UID, in the group runName. The model's own volume is the trainer's alone."
    )


class Tracking(Type):
    """Trackers of driver Runner. None of them can hold the run up."""

    project: str = Field(
        default="espalier",
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$",
        max_length=64,
        description="project groups runs; MLflow calls it an experiment.",
    )
    run_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="runName is for people; the name of the TrainingRun if unset. What a tracker "
        "goes on by is the UID.",
    )
    wandb: Wandb | None = Field(default=None, description="wandb is Weights & Biases.")
    mlflow: MLflowServer | None = Field(default=None, description="mlflow is an MLflow server.")
    tensor_board: TensorBoardFiles | None = Field(
        default=None, description="tensorBoard writes event files."
    )
    trackio: TrackioFiles | None = Field(
        default=None, description="trackio writes trackio's own files."
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                " || ".join(f"has(self.{name})" for name in SINKS),
                f"tracking needs a tracker: set {', '.join(SINKS[:-1])} or {SINKS[-1]}",
            )
        )
    )
