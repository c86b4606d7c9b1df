"""The licence of a Python package as an SPDX expression, and whether we may ship it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageMetadata
from pathlib import Path

from license_expression import ExpressionError, get_spdx_licensing

NAMED = Path(__file__).with_name("licences.toml")
# Licences whose works may be shipped unchanged beside, or in, a work under Apache-2.0.
ACCEPTED = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
    *("HPND", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"),
}
# What stood in metadata before there were SPDX expressions; each text has one meaning.
_TEXTS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
}
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
_SPDX = get_spdx_licensing()


@dataclass(frozen=True)
class Named:
    """What licences.toml says."""

    read: Mapping[str, str]
    """Expressions by package."""
    accepted: Mapping[str, str]
    """Reasons by licence."""


@cache
def named() -> Named:
    """The file beside this module."""
    told = tomllib.loads(NAMED.read_text())
    return Named(told["read"], told["accepted"])


def licence_of(metadata: PackageMetadata) -> str | None:
    """The SPDX expression of a package; None where it tells none and licences.toml neither."""
    name = metadata["Name"].lower().replace("_", "-")
    if (read := named().read.get(name)) is not None:
        return read
    if (expression := _field(metadata, "License-Expression")) is not None:
        return expression
    text = (_field(metadata, "License") or "").strip()
    if text and _known(text):
        return text
    if text in _TEXTS:
        return _TEXTS[text]
    told = {
        line.split(" :: ")[-1]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License :: OSI Approved :: ")
    }
    if told and told <= set(_CLASSIFIERS):
        return " AND ".join(sorted(_CLASSIFIERS[one] for one in told))
    return None


def problem_of(name: str, expression: str | None) -> str | None:
    """Why a package may not be shipped, with the remedy; None where it may."""
    name = name.lower().replace("_", "-")
    if expression is None:
        return f"{name} tells no licence: read it, and write it under [read] of {NAMED.name}"
    if accepted(expression):
        return None
    return (
        f"{name} is under {expression}, which is not accepted: leave it out, or give the reason "
        f"why it may be shipped under [accepted] of {NAMED.name}"
    )


def accepted(expression: str) -> bool:
    """Whether a choice that the expression leaves is of licences alone that may be shipped."""
    try:
        parsed = _SPDX.parse(expression)
    except ExpressionError:
        return False
    return parsed is not None and _accepted(parsed)


def _accepted(part: object) -> bool:
    if isinstance(part, _SPDX.AND):
        return all(_accepted(one) for one in part.args)
    if isinstance(part, _SPDX.OR):
        return any(_accepted(one) for one in part.args)
    told = str(part)
    if told in ACCEPTED or told in named().accepted:
        return True
    # An exception only adds to what its licence permits.
    licence, _, exception = told.partition(" WITH ")
    return bool(exception) and licence in ACCEPTED


def _field(metadata: PackageMetadata, key: str) -> str | None:
    return next(iter(metadata.get_all(key) or ()), None)


def _known(text: str) -> bool:
    try:
        _SPDX.parse(text, validate=True)
    except ExpressionError:
        return False
    return True
