"""A completion's body, read once: what a rollout gets is what was asked, under its own name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.completion_request import read_asked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(("logprobs", "return_token_ids", "prompt", "n", "stream", "é", '"', "")),
    JSON,
)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all there once: of two, two readers may take different ones."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@given(FIELDS)
def test_a_rollout_gets_each_field_once_and_as_it_was_sent(fields: dict[str, Any]) -> None:
    asked = read_asked({"model": "arith", **fields})
    sent = json.loads(asked.text("arith@a1", recorded=False), object_pairs_hook=once)
    # A stream is counted by its last event.
    counted = {"stream_options": {"include_usage": True}} if fields.get("stream") is True else {}
    # As text, because NaN is not equal to itself.
    assert json.dumps(sent, sort_keys=True) == json.dumps(
        {"model": "arith@a1", **fields, **counted}, sort_keys=True
    )


@pytest.mark.parametrize("fields", [{}, {"logprobs": False, "return_token_ids": None}])
def test_a_recorded_turn_has_its_tokens_whatever_was_asked(fields: dict[str, Any]) -> None:
    asked = read_asked({"model": "arith", "messages": [], **fields})
    assert asked.recordable
    sent = json.loads(asked.text("arith@a1", recorded=True), object_pairs_hook=once)
    expected = {"model": "arith@a1", "messages": [], "logprobs": True, "return_token_ids": True}
    assert sent == expected


@pytest.mark.parametrize(
    "fields", [{"stream": True}, {"n": 2}, {"n": []}], ids=["a stream", "several", "no number"]
)
def test_a_stream_and_a_choice_of_several_are_no_turn(fields: dict[str, Any]) -> None:
    assert not read_asked({"model": "arith", "messages": [], **fields}).recordable


def test_the_checkpoint_is_part_of_what_is_asked_and_not_sent() -> None:
    asked = read_asked({"model": "arith", "checkpoint": "arith-000001"})
    assert (asked.model, asked.reference) == ("arith", "arith@arith-000001")
    assert json.loads(asked.text("x", recorded=False)) == {"model": "x"}


@pytest.mark.parametrize("model", [None, 7, "", ["arith"]])
def test_a_body_without_a_model_is_refused(model: object) -> None:
    with pytest.raises(RefusalError, match="ModelMissing"):
        read_asked({"model": model})


@pytest.mark.parametrize("kind", [[], {}, 7, None])
def test_a_part_of_no_type_is_refused(kind: object) -> None:
    message = {"role": "user", "content": [{"type": kind}]}
    with pytest.raises(RefusalError, match="only text is sampled"):
        read_asked({"model": "arith", "messages": [message]})
