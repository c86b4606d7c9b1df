"""Which versions of Tinker's SDK are taken, and what the others are told. Pure."""

from __future__ import annotations

import re

from espalier.gateway.problems import RefusalError

# Minor versions: the first that can send what is taken, and the range that tests run.
FIRST, TESTED_FROM, TESTED_TO = 22, 35, 38
_VERSION = re.compile(r"0\.(?P<minor>[0-9]{1,4})(?:\..*)?")


def version_note(text: str) -> str:
    """What the user of a version is told; empty for one that is tested.

    Raises:
        RefusalError: 422, the version is too old to be understood.
    """
    match = _VERSION.fullmatch(text)
    if match is None:
        return f"tinker {text[:32]} is not among the versions tested here: {_RANGE}"
    minor = int(match["minor"])
    if minor < FIRST:
        raise RefusalError(
            422,
            "SdkTooOld",
            f"sdk_version: tinker {text[:32]} sends JSON where protobuf is taken",
            f"Install a newer one, tested are {_RANGE}: pip install -U tinker",
        )
    if TESTED_FROM <= minor <= TESTED_TO:
        return ""
    age = "older" if minor < TESTED_FROM else "newer"
    return f"tinker {text[:32]} is {age} than the versions tested here: {_RANGE}"


_RANGE = f"0.{TESTED_FROM} to 0.{TESTED_TO}"
