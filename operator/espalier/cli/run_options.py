"""The options of ``espalier run create``: one for each field of a TrainingRun's spec.

They are derived from the API type, so that a new field has its option at once. A field of a section
is ``--<section>-<field>``, such as ``--loss-clip-high``, or ``--<field>`` where the section is one
of UNNAMED; SHORT has those that are named otherwise.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import annotated_types
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from espalier.api.meta import ObjectRef
from espalier.api.trainingrun import TrainingRunSpec
from espalier.cli.failure import CliError

Path = tuple[str, ...]
Command = TypeVar("Command", bound=Callable[..., None])

# The command names the model and derives the driver. A pod's template belongs into a manifest.
LEFT_OUT = frozenset({"modelRef", "driver", "runner"})
# Sections whose fields say by themselves what they are of.
UNNAMED = frozenset({"sampling", "taskset", "checkpoint"})
SHORT: Mapping[Path, str] = {
    ("loss", "name"): "--loss",
    # The taskset's has the short one.
    ("seed",): "--run-seed",
    ("taskset", "configMap", "name"): "--config-map",
    ("taskset", "reasoningGym", "dataset"): "--dataset",
    ("taskset", "persistentVolumeClaim", "claimName"): "--claim",
    ("taskset", "persistentVolumeClaim", "path"): "--claim-path",
}


@dataclass(frozen=True)
class RunOption:
    """An option and the field that it sets.

    ``path`` is below spec, in the manifest's words; ``names`` is the same in Python's.
    """

    path: Path
    names: Path
    type: Any
    required: bool
    help: str
    least: int | None
    most: int | None

    @property
    def flag(self) -> str:
        """As it is typed."""
        names = self.names[1:] if self.names[0] in UNNAMED else self.names
        return SHORT.get(self.path, f"--{'-'.join(names)}".replace("_", "-"))

    @property
    def parameter(self) -> str:
        """The name of the command's argument."""
        return "_".join(self.names)

    @property
    def is_json(self) -> bool:
        """Whether the value is a mapping or a list of objects, and is given as JSON."""
        return get_origin(self.type) is dict or self._lists_objects

    @property
    def _lists_objects(self) -> bool:
        inner = get_args(self.type)[0] if get_origin(self.type) is list else None
        return get_origin(inner) is dict or _is_model(inner)

    def read(self, value: Any) -> Any:
        """The field's value; CliError if it should be JSON and is not."""
        if not self.is_json:
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            detail = f"{self.flag} is not JSON: {error}"
            form = '[{"KEY": VALUE}]' if self._lists_objects else '{"KEY": VALUE}'
            raise CliError(detail, "usage", f"Give {form}") from error

    def signature(self) -> inspect.Parameter:
        """The parameter that typer makes the option of."""
        kind = str if self.is_json else self.type
        option = typer.Option(
            self.flag,
            help=self.help,
            min=self.least,
            max=self.most,
            metavar="JSON" if self.is_json else None,
            # A table of its own for each section keeps long names of one from crowding others.
            rich_help_panel=f"spec.{self.path[0]}" if len(self.path) > 1 else None,
        )
        return inspect.Parameter(
            self.parameter,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if self.required else None,
            annotation=Annotated[kind if self.required else kind | None, option],
        )


def with_run_options(command: Command) -> Command:
    """Adds the options to a command, which takes their values as ``**fields``."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    positional = [p for p in own if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    named = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
    options = [option.signature() for option in OPTIONS]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*positional, *named[:1], *options, *named[1:]]
    )
    return command


def given(fields: Mapping[str, Any]) -> list[tuple[RunOption, Any]]:
    """The options that were given, with their values."""
    return [(o, fields[o.parameter]) for o in OPTIONS if fields.get(o.parameter) is not None]


def spec_of(options: list[tuple[RunOption, Any]]) -> dict[str, Any]:
    """The fields of a spec that the options set."""
    spec: dict[str, Any] = {}
    for option, value in options:
        section = spec
        for part in option.path[:-1]:
            section = section.setdefault(part, {})
        section[option.path[-1]] = option.read(value)
    return spec


def _options(model: type[BaseModel], above: Path = (), names: Path = ()) -> Iterator[RunOption]:
    for name, field in model.model_fields.items():
        path = (*above, field.alias or name)
        kind = _bare(field.annotation)
        if path[0] in LEFT_OUT:
            continue
        if _is_model(kind):
            yield from _options(kind, path, (*names, name))
        elif kind is ObjectRef:
            yield _option((*path, "name"), (*names, name), str, field)
        else:
            yield _option(path, (*names, name), kind, field)


def _option(path: Path, names: Path, kind: Any, field: FieldInfo) -> RunOption:
    # A field that its section needs is needed only with the section.
    required = field.is_required() and len(path) == 1
    bounds = field.metadata
    least = next((b.ge for b in bounds if isinstance(b, annotated_types.Ge)), None)
    most = next((b.le for b in bounds if isinstance(b, annotated_types.Le)), None)
    return RunOption(path, names, kind, required, field.description or "", least, most)  # type: ignore[arg-type]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _bare(annotation: Any) -> Any:
    """A field's type without None and without constraints."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (kind,) = (arg for arg in get_args(annotation) if arg is not types.NoneType)
        return _bare(kind)
    if get_origin(annotation) is list:
        return list[_bare(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


OPTIONS = tuple(_options(TrainingRunSpec))
