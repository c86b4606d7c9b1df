"""What users of each version of the SDK are told."""

from __future__ import annotations

import pytest
from tests.tinker.sdk import VERSIONS

from espalier.gateway.problems import RefusalError
from espalier.gateway.tinker.sdk_versions import version_note


def test_versions_that_are_tested_are_told_nothing() -> None:
    assert [version_note(version) for version in VERSIONS] == ["", "", ""]


@pytest.mark.parametrize(
    ("version", "note"),
    [
        ("0.39.0", "tinker 0.39.0 is newer than the versions tested here: 0.35 to 0.38"),
        ("0.28.1", "tinker 0.28.1 is older than the versions tested here: 0.35 to 0.38"),
        ("1.0.0", "tinker 1.0.0 is not among the versions tested here: 0.35 to 0.38"),
        ("", "tinker  is not among the versions tested here: 0.35 to 0.38"),
    ],
)
def test_others_are_told_which_are_tested(version: str, note: str) -> None:
    assert version_note(version) == note


@pytest.mark.parametrize("version", ["0.16.1", "0.3.0"])
def test_one_that_cannot_be_understood_is_refused_with_the_way_to_a_newer(version: str) -> None:
    with pytest.raises(RefusalError, match="SdkTooOld") as refused:
        version_note(version)
    assert "pip install -U tinker" in refused.value.remedy
