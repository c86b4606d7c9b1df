"""The page of the command line: every command and option, from the Typer application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from dev.docs.markdown import code, page, table

from espalier.cli.main import app

NAMES: dict[type, str] = {str: "text", int: "integer", float: "number", Path: "path"}
# Every command has these.
HELP = {"--install-completion", "--show-completion", "--help"}


def pages() -> dict[str, str]:
    """The page by file name."""
    parts = list(_command("espalier", typer.main.get_command(app)))
    return {
        "cli.md": page(
            "The command line: every command and option",
            "operator/espalier/cli",
            "Uses, output and exit codes: [the command line](../guides/command-line.md). "
            "`kubectl espalier` is the same program. `--help` prints each of these sections.",
            *parts,
        )
    }


def _command(path: str, command: Any) -> Iterator[str]:
    children = getattr(command, "commands", {})
    parameters = [p for p in command.params if not p.hidden and not HELP & set(p.opts)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    yield f"## {path}"
    yield " ".join((command.help or "").split())
    if not children:
        yield f"```\n{' '.join([path, '[OPTIONS]', *map(_usage, arguments)])}\n```"
    if parameters:
        yield table(("argument or option", "value", "default", "what it is"), map(_row, parameters))
    for name, child in children.items():
        if not child.hidden:
            yield from _command(f"{path} {name}", child)


def _usage(argument: Any) -> str:
    name = argument.name.upper()
    many = name if argument.nargs == 1 else f"{name}..."
    return many if argument.required else f"[{many}]"


def _row(parameter: Any) -> tuple[str, str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.name.upper()]
    variable = f"Also by {code(parameter.envvar)}." if parameter.envvar else ""
    shown = "*required*" if parameter.required else code(_default(parameter.default))
    meaning = " ".join(filter(None, (parameter.help, variable)))
    return ", ".join(map(code, names)), _value(parameter), shown, meaning


def _value(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if kind is bool:
        return ""
    if choices := get_args(kind) if get_origin(kind) is Literal else ():
        return ", ".join(map(code, choices))
    # A list is an option that may be repeated, each time with one value.
    (inner,) = get_args(kind) or (kind,)
    return NAMES[inner] + (", repeated" if get_origin(kind) is list else "")


def _default(default: object) -> str:
    if default is None or default is False or default in ((), [], ""):
        return ""
    return str(getattr(default, "value", default))
