"""What all commands share: options, output as text or JSON, and the question before an edit."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from espalier.cli.dev_state import LocalObjects
from espalier.cli.failure import CliError
from espalier.cli.kubectl import Kubectl
from espalier.core.names import GATEWAY_AUDIENCE
from espalier.runner.run_end import UserError, WaitError

_JSON = "espalier.json"


def _remember(context: typer.Context, value: bool) -> bool:
    # The parameters of a failed command are gone where its failure is reported.
    context.meta[_JSON] = value
    return value


Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Namespace; that of the current context if not given."),
]
Local = Annotated[
    Path | None,
    typer.Option(
        "--local",
        envvar="ESPALIER_LOCAL",
        help="State directory of an espalier dev, whose objects are read instead of a cluster's.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", callback=_remember, help="Print JSON, failures included.")
]
Url = Annotated[str, typer.Option(envvar="ESPALIER_GATEWAY_URL", help="URL of the gateway.")]
Token = Annotated[
    str,
    typer.Option(
        envvar="ESPALIER_TOKEN",
        help=f"Token: kubectl create token NAME --audience {GATEWAY_AUDIENCE}.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Names only, one a line.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Let the API server check it, and change nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Place:
    """Where the objects are, from the options before the command."""

    namespace: str | None
    local: Path | None


@dataclass(frozen=True)
class Access:
    """The gateway's URL and the caller's token."""

    url: str
    token: str


class Commands(TyperGroup):
    """Turns failures that a user can read into one line, or JSON, and an exit code.

    0: done. 1: it failed. 2: the command was wrong, or names something that does not exist.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was chosen."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            known = _known(error)
            if known is None:
                raise
            if ctx.meta.get(_JSON):
                failure = {"error": known.kind, "message": str(known)}
                if known.suggestion:
                    failure["suggestion"] = known.suggestion
                typer.echo(json.dumps(failure, indent=2))
            else:
                hint = f". {known.suggestion}" if known.suggestion else ""
                typer.echo(f"error: {known}{hint}", err=True)
            raise typer.Exit(known.exit_code) from error


def _known(error: Exception) -> CliError | None:
    """The failure in a form that a user can read; None for an unexpected one."""
    # The client's HTTP library takes longer to import than most commands take to run.
    from espalier.client import GatewayError  # noqa: PLC0415

    if isinstance(error, CliError):
        return error
    readable = isinstance(error, (GatewayError, UserError, WaitError))
    return CliError(str(error)) if readable else None


def commands(help_: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(no_args_is_help=True, help=help_, cls=Commands)


def kubectl(context: typer.Context, namespace: str | None) -> Kubectl:
    """Reads objects in the namespace that was given to the command or to ``espalier`` itself."""
    place: Place = context.find_root().obj
    chosen = namespace or place.namespace
    return LocalObjects(place.local, chosen) if place.local else Kubectl(chosen)


def show(as_json: bool, content: Any, text: str) -> None:
    """Prints the content as JSON, or the text."""
    typer.echo(json.dumps(content, indent=2) if as_json else text)


def confirm(question: str, *, yes: bool, dry_run: bool) -> None:
    """Asks before an edit.

    Raises:
        CliError: nobody can answer, or the answer is no.
    """
    if yes or dry_run:
        return
    if not sys.stdin.isatty():
        raise CliError(f"{question} needs a yes", "usage", "Give --yes, or --dry-run to look")
    if not typer.confirm(question):
        raise CliError("nothing was changed")


def access(url: str, token: str) -> Access:
    """The gateway's URL and the caller's token.

    Raises:
        CliError: one of them is missing.
    """
    if not url:
        raise CliError(
            "where is the gateway? Set ESPALIER_GATEWAY_URL or --url, for example after "
            "kubectl -n espalier-system port-forward service/espalier-gateway 8000:80"
        )
    if not token:
        raise CliError(
            "who asks? Set ESPALIER_TOKEN or --token, for example to "
            f"$(kubectl create token NAME --audience {GATEWAY_AUDIENCE})"
        )
    return Access(url, token)
