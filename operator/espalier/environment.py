"""Settings of a process: one class per process, one field per environment variable.

A field names its variable with ``validation_alias``, and its ``description`` completes the
sentence "set it to ...", which is the remedy when the variable is missing or wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Text = Annotated[str, StringConstraints(min_length=1)]


class SettingsError(Exception):
    """Variables are missing or wrong: ``detail`` names them, ``remedy`` says what to set."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        """``faults``: what is wrong with a variable, and the remedy, one pair per variable."""
        super().__init__("; ".join(f"{detail}: {remedy}" for detail, remedy in faults))
        self.detail = "; ".join(detail for detail, _ in faults)
        self.remedy = "; ".join(remedy for _, remedy in faults)


class EnvironmentSettings(BaseSettings):
    """Settings that ``read`` takes from an environment.

    An empty variable counts as not set, except for those ``with_empty_value``.
    """

    with_empty_value: ClassVar[frozenset[str]] = frozenset()

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        case_sensitive=True,
        populate_by_name=True,
        # Validators take texts of variables; a default is the value itself.
        validate_default=False,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the arguments: ``read`` passes the variables, and nothing reads ``os.environ``."""
        return (init_settings,)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """The settings of an environment; raises SettingsError with every variable at fault."""
        source = EnvSettingsSource(cls)
        source.env_vars = {
            name: value
            for name, value in environment.items()
            if value or name in cls.with_empty_value
        }
        try:
            return cls(**source())
        except ValidationError as error:
            raise SettingsError([cls._fault(fault) for fault in error.errors()]) from error

    @classmethod
    def _fault(cls, error: ErrorDetails) -> tuple[str, str]:
        """What is wrong with one variable, and the remedy."""
        variable, *inside = (str(part) for part in error["loc"])
        place = ".".join([variable, *inside])
        remedy = f"set {variable} to {cls._descriptions()[variable]}"
        if error["type"] == "missing" and not inside:
            return f"{variable} is not set", remedy
        if error["type"] == "value_error":
            return f"{place}: {error['ctx']['error']}", remedy
        return f"{place} is {_shown(error['input'])}: {error['msg']}", remedy

    @classmethod
    def _descriptions(cls) -> dict[str, str]:
        """What to set, by variable."""
        return {str(f.validation_alias): f.description or "" for f in cls.model_fields.values()}


def _shown(value: Any, most: int = 80) -> str:
    """A value as Python writes it, cut to ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
