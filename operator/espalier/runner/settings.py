"""The runner's settings, from the environment variables that the operator sets on its Job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from espalier.environment import EnvironmentSettings, Port, SettingsError
from espalier.runner.run_end import UserError
from espalier.runner.user_modules import MODULES_DIRECTORY

MOUNTED = "ESPALIER_TASKS_MOUNTED"
MODULES = "ESPALIER_MODULES_MOUNTED"
METRICS_PORT = "ESPALIER_METRICS_PORT"


class RunnerSettings(EnvironmentSettings):
    """What the operator tells the runner through its environment."""

    # Empty: no file of a taskset, no module of the user is mounted. Not set: all are here, outside
    # a cluster.
    with_empty_value = frozenset({MOUNTED, MODULES})

    run_key: str = Field(
        pattern=r"^[^/]+/.+$",
        validation_alias="ESPALIER_RUN",
        description="<namespace>/<name of a TrainingRun>, as the operator does in the runner's Job",
    )
    model: str = Field(validation_alias="ESPALIER_MODEL", description="the model's name")
    gateway_url: str = Field(
        validation_alias="ESPALIER_GATEWAY_URL", description="the gateway's URL"
    )
    token_file: Path = Field(
        validation_alias="ESPALIER_TOKEN_FILE", description="the file that holds the token"
    )
    mounted: str | None = Field(
        None,
        validation_alias=MOUNTED,
        description="what of a taskset's files is mounted, as TaskFile.mounted has it",
    )

    mounted_modules: str | None = Field(
        None,
        validation_alias=MODULES,
        description="the mounted modules of rewards and loss, as <ConfigMap>/<key>, with commas "
        "between",
    )
    modules_directory: Path = Field(
        MODULES_DIRECTORY,
        validation_alias="ESPALIER_MODULES_DIRECTORY",
        description="where these modules are mounted",
    )

    metrics_port: Port | None = Field(
        None,
        validation_alias=METRICS_PORT,
        description="the port at which metrics are served, or leave it out for none",
    )

    @property
    def modules(self) -> frozenset[str] | None:
        """The mounted modules of the user; None where all are here."""
        given = self.mounted_modules
        return None if given is None else frozenset(filter(None, given.split(",")))

    @property
    def namespace(self) -> str:
        """Of the run."""
        return self.run_key.partition("/")[0]

    @property
    def run(self) -> str:
        """The run's name."""
        return self.run_key.partition("/")[2]


def read_settings(environment: Mapping[str, str]) -> RunnerSettings:
    """Raises UserError naming the variables that are missing or wrong."""
    try:
        return RunnerSettings.read(environment)
    except SettingsError as error:
        raise UserError("InvalidSettings", error.detail, error.remedy) from error
