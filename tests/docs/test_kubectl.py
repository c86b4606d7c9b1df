"""The kinds that the documents give kubectl have those names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.test_commands import FENCED
from tests.docs.test_links import CODE, HAND_WRITTEN, name

from espalier.api.crds import KINDS, definition

NAMES = [definition(kind)["spec"]["names"] for kind in KINDS]
OURS = {
    one
    for names in NAMES
    for one in (names["singular"], names["plural"], *names["shortNames"], names["kind"].lower())
}
# What the documents name besides, of Kubernetes, its monitoring and Kueue.
OTHERS = {
    *("configmap", "events", "lease", "node", "pod", "pods", "secret"),
    *("prometheus", "workloads"),
}
VERBS = "annotate|delete|describe|edit|explain|get|label|patch|scale|wait"
OPTION = r"(?:-\S+(?:[ =](?!-)\S+)? )"
CALL = re.compile(rf"(?:kubectl {OPTION}*?|^)(?:{VERBS}) (?:--\S+ )*([a-z]\S*)")


def shown(page: Path) -> Iterator[str]:
    """The kinds that a page gives kubectl, in blocks and in the text; a table may leave it out."""
    text = page.read_text()
    blocks = "\n".join(FENCED.findall(text)).splitlines()
    for line in [*(line for line in blocks if "kubectl" in line), *CODE.findall(text)]:
        for kinds in CALL.findall(line):
            for kind in kinds.rstrip(";:)").split(","):
                yield re.split(r"[/.]", kind)[0]


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_every_kind_that_kubectl_is_given_is_known(page: Path) -> None:
    assert set(shown(page)) - OURS - OTHERS == set()


def test_kinds_are_found_and_a_wrong_one_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`kubectl -n ml get tm,ckpt -o wide` or `get tr`\n```\nkubectl wait trun/a\n```\n"
    )
    assert sorted(shown(page)) == ["ckpt", "tm", "tr", "trun"]
    assert {"tmodel", "trainablemodels"} <= OURS
