"""Where the tasks come from that are one question with an answer."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from espalier.api.meta import Name, Type, cel, explained, list_map

DATASET_PATTERN = r"^[a-z0-9_]+$"
FILE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"


def _path(where: str) -> Any:
    return Field(
        description=f"path of the file {where}, with one task a line as in a ConfigMap.",
        pattern=FILE_PATTERN,
        max_length=400,
        json_schema_extra=explained(
            FILE_PATTERN, "must be a relative path without '..', such as gsm8k/train.jsonl"
        ),
    )


def _dataset(**more: Any) -> Any:
    return Field(
        pattern=DATASET_PATTERN,
        max_length=64,
        json_schema_extra=explained(
            DATASET_PATTERN,
            "must be a reasoning-gym name: lower-case letters, digits and '_', such as "
            "basic_arithmetic",
        ),
        **more,
    )


def _config() -> Any:
    return Field(
        default=None,
        description="config holds the dataset's own keyword arguments.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class MixedDataset(Type):
    """One part of a mix."""

    name: str = _dataset(description="name of a reasoning-gym dataset, for example chain_sum.")
    weight_percent: int = Field(
        ge=1, le=100, description="weightPercent of the tasks that are of this dataset."
    )
    config: dict[str, Any] | None = _config()


class ReasoningGym(Type):
    """Tasks generated and scored by reasoning-gym: of one dataset, or of a mix."""

    dataset: str | None = _dataset(
        default=None, description="dataset is a reasoning-gym name, for example basic_arithmetic."
    )
    config: dict[str, Any] | None = _config()
    datasets: list[MixedDataset] | None = Field(
        default=None,
        description="datasets are mixed by weight, each named once; the seed draws their order.",
        min_length=1,
        max_length=16,
        json_schema_extra={
            **list_map("name"),
            **cel(
                (
                    "self.map(d, d.weightPercent).sum() == 100",
                    "weightPercent must sum to 100: change the weights",
                )
            ),
        },
    )

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.dataset) != has(self.datasets)",
                "set exactly one of dataset and datasets",
                ".dataset",
            ),
            (
                "!has(self.config) || has(self.dataset)",
                "config belongs to dataset: give each of datasets its own",
                ".config",
            ),
        )
    )


class ConfigMapTasks(Type):
    """Tasks as JSON lines in a ConfigMap."""

    name: Name = Field(description="name of the ConfigMap.")
    key: str = Field(
        default="tasks.jsonl",
        description="key with one task a line: {id, prompt or messages, answer}. An id names the "
        "task in logs and rollouts; no two tasks have the same.",
        pattern=r"^[-._a-zA-Z0-9]+$",
        max_length=253,
    )


class ClaimTasks(Type):
    """Tasks as JSON lines on a claim."""

    claim_name: Name = Field(description="claimName of the claim that holds the file.")
    path: str = _path("inside the claim")

    @property
    def directory(self) -> str:
        """Where the file is; empty for the root of the claim."""
        return self.path.rpartition("/")[0]


class ImageTasks(Type):
    """Tasks as JSON lines in an OCI image, which needs ``cp``."""

    reference: str = Field(
        description="reference of the image, whose files under /tasks are copied.",
        min_length=1,
        max_length=400,
    )
    path: str = _path("below /tasks")
