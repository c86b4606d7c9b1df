"""``espalier keys``: API keys of service accounts, for clients that take no Kubernetes token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from espalier.cli.failure import CliError
from espalier.cli.issue_key import issue_key
from espalier.cli.key_store import Entries, key_store
from espalier.cli.options import AsJson, Namespace, commands, kubectl, show
from espalier.cli.table import table
from espalier.core.api_keys import (
    NAME,
    SCOPES,
    Scope,
    StoredKey,
    duration,
    read_entries,
)

app = commands("API keys: a service account, for clients that take no Kubernetes token.")

NEVER = "never"


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="To know the key by, such as who has it.")],
    *,
    service_account: Annotated[
        str, typer.Option(help="Whose rights the key has; of the namespace.")
    ],
    expires: Annotated[str, typer.Option(help="Time until then, such as 12h or 30d; never.")] = (
        "30d"
    ),
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"Limit it: {', '.join(SCOPES)}. May be repeated; all if not given."),
    ] = None,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Issue a key and print it, this once: only its digest is stored."""
    if not re.match(NAME, name):
        raise CliError(
            f"{name!r} is no name of a key", "usage", "Give letters, digits, - . _ @; 63 at most"
        )
    scopes = _scopes(scope or ())
    now = datetime.now(UTC).replace(microsecond=0)
    until = _until(expires, now)
    objects = kubectl(context, namespace)
    store, home = key_store(objects), objects.namespace()
    text, key = issue_key(
        home,
        service_account,
        account_uid=store.account_uid(service_account),
        scopes=scopes,
        created=now,
        expires=until,
        name=name,
    )

    def with_key(entries: Entries) -> Entries:
        if any(other.record.name == name for other in _keys(entries)):
            raise CliError(
                f"there is a key {name} in namespace {home}",
                "conflict",
                f"Revoke it, or give this one another name: espalier keys revoke {name}",
            )
        return {**entries, key.entry: key.record.model_dump_json()}

    store.change(with_key)
    said = f"acts as service account {home}/{service_account}, {_when(until)}, for: "
    typer.echo(f"{name} {said}{', '.join(scopes)}. It is not shown again.", err=True)
    show(as_json, {**_row(key, now), "key": text}, text)


@app.command("list")
def list_keys(
    context: typer.Context, *, as_json: AsJson = False, namespace: Namespace = None
) -> None:
    """List the keys of the namespace; none of them can be shown again."""
    store, now = key_store(kubectl(context, namespace)), datetime.now(UTC)
    entries = store.read()
    oldest_first = sorted(_keys(entries), key=lambda key: (key.record.created, key.record.name))
    rows = [_row(key, now) for key in oldest_first]
    _, unreadable = read_entries(entries)
    if unreadable:
        typer.echo(
            f"entries that are no keys, and let nobody in: {', '.join(unreadable)}", err=True
        )
    show(as_json, rows, table(rows) or "no keys")


@app.command()
def revoke(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Of the keys, or their ids.")] = None,
    *,
    expired: Annotated[bool, typer.Option("--expired", help="Those whose time is over.")] = False,
    as_json: AsJson = False,
    namespace: Namespace = None,
) -> None:
    """Revoke keys: within seconds the gateway refuses them."""
    wanted = set(names or ())
    if not wanted and not expired:
        raise CliError("which keys?", "usage", "Name them, or give --expired")
    now = datetime.now(UTC)
    gone: list[StoredKey] = []

    def without(entries: Entries) -> Entries:
        keys = _keys(entries)
        known = {label for key in keys for label in (key.id, key.record.name)}
        if missing := sorted(wanted - known):
            there = ", ".join(sorted(key.record.name for key in keys)) or "none"
            raise CliError(
                f"no key {', '.join(missing)}: nothing was revoked",
                "not_found",
                f"There are: {there}",
            )
        gone[:] = [
            key
            for key in keys
            if wanted & {key.id, key.record.name} or (expired and key.expired(now))
        ]
        leaving = {key.entry for key in gone}
        return {entry: text for entry, text in entries.items() if entry not in leaving}

    key_store(kubectl(context, namespace)).change(without)
    revoked = [key.record.name for key in gone]
    show(as_json, {"revoked": revoked}, f"revoked {', '.join(revoked) or 'none'}")


def _keys(entries: Mapping[str, str]) -> list[StoredKey]:
    return list(read_entries(entries)[0].values())


def _row(key: StoredKey, now: datetime) -> dict[str, Any]:
    record = key.record
    expires = record.expires.isoformat() if record.expires else NEVER
    return {
        "name": record.name,
        "id": key.id,
        "account": key.account,
        "scope": ",".join(record.scopes),
        "created": record.created.isoformat(),
        "expires": f"{expires} (expired)" if key.expired(now) else expires,
    }


def _scopes(given: list[str] | tuple[str, ...]) -> tuple[Scope, ...]:
    if unknown := sorted(set(given) - set(SCOPES)):
        raise CliError(
            f"--scope {', '.join(unknown)} is none", "usage", f"Give some of {', '.join(SCOPES)}"
        )
    return tuple(scope for scope in SCOPES if scope in given or not given)


def _until(text: str, now: datetime) -> datetime | None:
    if text == NEVER:
        return None
    length = duration(text)
    if length is None:
        raise CliError(
            f"--expires {text} is no time", "usage", "Give one such as 90m, 12h or 30d, or never"
        )
    return now + length


def _when(until: datetime | None) -> str:
    return f"until {until.isoformat()}" if until else "for ever"
