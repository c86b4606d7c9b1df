"""Settings from environment variables: what is refused, and how it is told."""

from __future__ import annotations

import pytest
from pydantic import Field

from espalier.environment import EnvironmentSettings, Port, SettingsError
from espalier.runner.settings import RunnerSettings


class Settings(EnvironmentSettings):
    name: str = Field(validation_alias="X_NAME", description="a name")
    port: Port = Field(80, validation_alias="X_PORT", description="a port, 1 to 65535")


def test_settings_are_the_variables_and_the_defaults() -> None:
    assert Settings.read({"X_NAME": "a", "X_OTHER": "b"}).model_dump() == {
        "name": "a",
        "port": 80,
    }
    assert Settings.read({"X_NAME": "a", "X_PORT": "81"}).port == 81


def test_every_variable_at_fault_is_named_with_its_remedy() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.read({"X_PORT": "65536"})
    assert str(refused.value) == (
        "X_NAME is not set: set X_NAME to a name; "
        "X_PORT is '65536': Input should be less than or equal to 65535: "
        "set X_PORT to a port, 1 to 65535"
    )
    assert refused.value.remedy == "set X_NAME to a name; set X_PORT to a port, 1 to 65535"


def test_an_empty_variable_is_not_set() -> None:
    assert Settings.read({"X_NAME": "a", "X_PORT": ""}).port == 80
    with pytest.raises(SettingsError, match="X_NAME is not set"):
        Settings.read({"X_NAME": ""})


def test_only_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_PORT", "81")
    assert Settings.read({"X_NAME": "a"}).port == 80
    assert Settings(name="a").port == 80


@pytest.mark.parametrize(("given", "mounted"), [({}, None), ({"ESPALIER_TASKS_MOUNTED": ""}, "")])
def test_no_mounted_taskset_differs_from_no_word_of_one(
    given: dict[str, str], mounted: str | None
) -> None:
    settings = RunnerSettings.read(
        {
            "ESPALIER_RUN": "team/arith",
            "ESPALIER_MODEL": "arith",
            "ESPALIER_GATEWAY_URL": "http://gateway",
            "ESPALIER_TOKEN_FILE": "/token",
            **given,
        }
    )
    assert (settings.namespace, settings.run, settings.mounted) == ("team", "arith", mounted)
