"""Pinning a head in its file changes those characters alone."""

from __future__ import annotations

import difflib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from espalier.cli.head_manifest import HeadManifest, HeadManifestError, heads

HEADER = "apiVersion: espalier.dev/v1alpha1\nkind: CheckpointHead\nmetadata: {name: arith}\n"
TRACKING = (
    HEADER
    + """\
spec:
  modelRef:
    name: arith  # the model
  mode: Track   # follow the newest
  gate: {metric: reward/mean, min: "0.42"}
"""
)


def only(text: str) -> HeadManifest:
    (found,) = heads(text)
    return found


def changed(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_a_tracking_head_gets_two_lines_and_keeps_its_comments() -> None:
    assert changed(TRACKING, only(TRACKING).pinned("arith-000012")) == [
        "-   mode: Track   # follow the newest",
        "+   mode: Pin   # follow the newest",
        "+   checkpointRef:",
        "+     name: arith-000012",
    ]


def test_a_pinned_head_gets_another_name_and_nothing_else() -> None:
    text = only(TRACKING).pinned("arith-000012")
    assert only(text).pin == "arith-000012"
    assert changed(text, only(text).pinned("arith-000020")) == [
        "-     name: arith-000012",
        "+     name: arith-000020",
    ]


def test_a_reference_that_tracking_ignored_is_used() -> None:
    text = HEADER + "spec: {modelRef: {name: arith}, mode: Track, checkpointRef: {name: old}}\n"
    assert only(text).pin == ""
    assert only(only(text).pinned("new")).pin == "new"
    assert "mode: Pin, checkpointRef: {name: new}}" in only(text).pinned("new")


@pytest.mark.parametrize(
    "spec",
    [
        "spec: {modelRef: {name: arith}, mode: Track}",
        "spec: {mode: 'Track', modelRef: {name: arith}}  # short",
        'spec:\n      mode: "Track"\n      modelRef: {name: arith}',
        "spec:\n  modelRef: {name: arith}\n  mode: Track",
        "spec:\r\n  modelRef: {name: arith}\r\n  mode: Track\r\n  onPin: Branch\r\n",
        "spec:\n  modelRef: {name: arith}\n  mode: Pin\n  checkpointRef:\n    name: 'a'\n",
    ],
)
def test_any_way_to_write_a_head_is_pinned_in_place(spec: str) -> None:
    text = f"# ours\n{HEADER}{spec}"
    edited = only(text).pinned("arith-000012")
    before, after = yaml.safe_load(text), yaml.safe_load(edited)
    assert after["spec"] == before["spec"] | {
        "mode": "Pin",
        "checkpointRef": {"name": "arith-000012"},
    }
    assert edited.startswith("# ours\n")
    assert edited.count("\r\n") in (0, text.count("\r\n") + 2)


def test_one_head_of_several_documents_is_edited() -> None:
    other = TRACKING.replace("{name: arith}", "{name: canary, namespace: ml}", 1)
    text = f"kind: ConfigMap\n---\n{TRACKING}---\n{other}"
    _, canary = heads(text)
    assert (canary.name, canary.namespace) == ("canary", "ml")
    stable, edited = heads(canary.pinned("arith-000012"))
    assert (stable.pin, edited.pin) == ("", "arith-000012")


def test_an_alias_is_refused_rather_than_edited_elsewhere() -> None:
    text = f"metadata: {{labels: {{mode: &mode Track}}}}\n---\n{TRACKING}"
    shared = HEADER + "x: &mode Track\nspec: {modelRef: {name: arith}, mode: *mode}\n"
    assert only(text).pinned("a")
    with pytest.raises(HeadManifestError, match="anchors or aliases"):
        only(shared).pinned("arith-000012")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "not YAML"),
        (HEADER + "spec: {modelRef: {name: arith}}\n", "spec.mode: Field required"),
        (HEADER + "spec: {modelRef: {name: a}, mode: Hold}\n", "spec.mode: Input should be"),
    ],
)
def test_a_head_that_is_not_valid_is_refused_with_the_field(text: str, why: str) -> None:
    with pytest.raises(HeadManifestError, match=why):
        heads(text)


def test_the_heads_of_other_groups_are_none_of_ours() -> None:
    assert heads(TRACKING.replace("espalier.dev", "example.com")) == []


names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
comments = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=20)


@given(name=names, comment=comments, indent=st.integers(1, 8), flow=st.booleans())
def test_the_edited_file_means_the_pin_whatever_the_name_and_the_layout(
    name: str, comment: str, indent: int, flow: bool
) -> None:
    lines = ["modelRef: {name: arith}", f"mode: Track  # {comment}", "onPin: Continue"]
    spec = "\n".join(" " * indent + line for line in lines)
    body = "{modelRef: {name: arith}, mode: Track}" if flow else f"\n{spec}"
    edited = only(f"{HEADER}spec: {body}\n").pinned(name)
    assert only(edited).pin == name
    assert flow or f"# {comment}" in edited
