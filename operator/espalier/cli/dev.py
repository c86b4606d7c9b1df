"""``espalier dev``: everything on this machine, without Kubernetes."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli.failure import CliError


def dev(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Of manifests, as for kubectl apply.")],
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the gateway.")] = 8000,
    state: Annotated[
        Path | None, typer.Option(help="Where everything is kept; default: DIRECTORY/.espalier.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="IMAGE=DIRECTORY: what the image has under /models, or the modules of one that "
            "plays a taskset. May be repeated."
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME/KEY=VARIABLE: a Secret's key, from an environment variable. May be repeated."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the operator's log.")] = False,
) -> None:
    """Run gateway, trainer and rollouts as processes over a directory of manifests."""
    given = context.find_root().get_parameter_source("local")
    if given is not None and given.name == "COMMANDLINE":
        raise CliError("--local is for commands that read", "usage", "espalier dev takes --state")
    try:
        from espalier.local import server  # noqa: PLC0415 - needs what the servers need
        from espalier.local.layout import Layout, StartError  # noqa: PLC0415
        from espalier.local.manifests import ManifestError  # noqa: PLC0415
    except ImportError as error:
        raise CliError(
            f"espalier dev runs the servers themselves and lacks {error.name}",
            "failure",
            "Install espalier[operator,trainer,rollout,runner,cli,local]",
        ) from error
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR)
    root = (state or directory / ".espalier").resolve()
    layout = Layout(root, _images(image or ()), _secrets(secret or ()))
    options = server.DevOptions(directory, layout, port, typer.echo)
    try:
        asyncio.run(server.run(options))
    except ManifestError as error:
        raise CliError(str(error), "usage") from error
    except StartError as error:
        raise CliError(str(error)) from error


def _images(given: list[str] | tuple[str, ...]) -> dict[str, Path]:
    pairs = [entry.rpartition("=") for entry in given]
    for reference, _, directory in pairs:
        if not reference or not directory:
            raise CliError("--image takes IMAGE=DIRECTORY", "usage")
    return {reference: Path(directory).expanduser() for reference, _, directory in pairs}


def _secrets(given: list[str] | tuple[str, ...]) -> dict[tuple[str, str], str]:
    secrets = {}
    for entry in given:
        place, _, variable = entry.partition("=")
        name, _, key = place.partition("/")
        if not (name and key and variable):
            raise CliError("--secret takes NAME/KEY=VARIABLE", "usage")
        if variable not in os.environ:
            raise CliError(f"--secret {entry}: {variable} is not set", "usage")
        secrets[name, key] = os.environ[variable]
    return secrets
