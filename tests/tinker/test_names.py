"""Names of Tinker's API say all that they mean, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.core.idempotency import MAX_KEY_CHARS, read_key
from espalier.gateway.tinker.futures import (
    MAX_BYTES,
    MAX_SAMPLE_BYTES,
    Future,
    sample_details,
)
from espalier.gateway.tinker.names import Sampler, Session, TinkerModel, WeightsPath
from espalier.gateway.world.world import NamespacedName

SESSION = Session("team-a", "0123456789abcdef")


@pytest.mark.parametrize(
    ("made", "text", "trained"),
    [
        (
            TinkerModel.new(SESSION, 3),
            "team-a.0123456789abcdef:train:3",
            "tk-0123456789abcdef-3",
        ),
        (
            TinkerModel.new(SESSION, 0, "arith"),
            "team-a.0123456789abcdef.arith:train:0",
            "arith",
        ),
        (TinkerModel.listed(NamespacedName("team-a", "arith")), "team-a.arith", "arith"),
    ],
)
def test_a_model_is_known_by_its_id_alone(made: TinkerModel, text: str, trained: str) -> None:
    assert str(made) == text
    assert TinkerModel.read(text) == made
    assert made.trained == NamespacedName("team-a", trained)
    path = f"tinker://{text}/weights/000010"
    found = WeightsPath.read(path)
    assert found is not None
    assert (str(found), found.model, found.checkpoint_id) == (path, made, "weights/000010")


def test_the_longest_names_fit_into_a_key_of_the_trainers_log() -> None:
    model = TinkerModel.new(Session("n" * 63, "f" * 16), 10**9 - 1, "m" * 63)
    key = f"{model}/{2**31 - 1}"
    assert len(key) <= MAX_KEY_CHARS
    assert read_key(key) == (str(model), 2**31 - 1)


@pytest.mark.parametrize("ref", ["", "base", "arith-b2-000010"])
def test_a_sampler_is_known_by_its_id_alone(ref: str) -> None:
    made = Sampler(SESSION, 7, NamespacedName("team-a", "arith"), ref)
    assert Sampler.read(str(made)) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "team-a",
        "team-a.0123456789abcdef:train:",
        "team-a.0123456789abcdef:train:-1",
        "team-a.0123456789ABCDEF:train:0",
        "Team-A.arith",
        "team-a.arith/../b",
        "team-a.a.b",
    ],
)
def test_what_is_no_model_is_read_as_none(text: str) -> None:
    assert TinkerModel.read(text) is None
    assert WeightsPath.read(f"tinker://{text}/weights/a") is None


@pytest.mark.parametrize(
    "rest", ["weights", "weights/", "weights/a/b", "weights/..", "else/a", "weights/" + "a" * 64]
)
def test_what_is_no_path_is_read_as_none(rest: str) -> None:
    assert WeightsPath.read(f"tinker://team-a.arith/{rest}") is None
    assert WeightsPath.read("team-a.arith/weights/a") is None


def test_a_session_that_is_asked_for_again_is_the_same() -> None:
    again = [Session.new("team-a", "ann", "key-1") for _ in range(2)]
    assert again[0] == again[1] != Session.new("team-a", "bob", "key-1")
    assert Session.read(str(again[0])) == again[0]


@given(
    st.sampled_from(["create", "train", "save", "failed"]),
    st.integers(0, 2**63 - 1),
    st.dictionaries(st.text(max_size=8), st.lists(st.integers()) | st.text() | st.none()),
)
def test_a_future_is_known_by_its_id_alone(
    kind: str, number: int, details: dict[str, object]
) -> None:
    made = Future(kind, "team-a.arith", number, details)  # type: ignore[arg-type]
    assert Future.read(str(made)) == made
    # What is read of a sample at first has no prompt.
    sample = replace(made, kind="sample")
    assert Future.read(str(sample)) == replace(sample, details={})
    assert sample_details(str(sample)) == details


@given(st.text(max_size=40))
def test_any_text_is_a_future_or_none(text: str) -> None:
    for tried in (text, f"sample/{text}", f"sample/a/1/{text}"):
        found = Future.read(tried)
        assert found is None or found.kind in tried
        assert isinstance(sample_details(tried), dict | None)


def test_a_future_is_not_inflated_beyond_its_limit() -> None:
    bomb = str(Future("save", "a", 1, {"x": "0" * (MAX_BYTES + 1)}))
    assert len(bomb) < MAX_BYTES // 100
    assert Future.read(bomb) is None
    bomb = str(Future("sample", "a", 1, {"x": "0" * (MAX_SAMPLE_BYTES + 1)}))
    assert len(bomb) < MAX_SAMPLE_BYTES // 100
    assert sample_details(bomb) is None
