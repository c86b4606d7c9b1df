"""Fields of a completion that are the gateway's own."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.gateway.problems import RefusalError
from espalier.gateway.sampling import check_continuation, reference

TURNS = [{"role": "user"}, {"role": "assistant"}, {"role": "user"}]


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"model": "arith"}, "arith"),
        ({"model": "arith", "checkpoint": None}, "arith"),
        ({"model": "arith", "checkpoint": "arith-000002"}, "arith@arith-000002"),
        ({"model": "arith", "checkpoint": "arith@arith-000002"}, "arith@arith-000002"),
        ({"model": "arith@base", "checkpoint": "base"}, "arith@base"),
    ],
)
def test_a_checkpoint_is_sampled_instead_of_the_head(fields: dict[str, Any], meant: str) -> None:
    assert reference(fields) == meant
    assert "checkpoint" not in fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "arith", "checkpoint": 3}, "checkpoint is not the name"),
        ({"model": "arith@base", "checkpoint": "arith-000001"}, "model names base"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusalError, match=said):
        reference(fields)


@pytest.mark.parametrize(
    ("tokens", "count", "said"),
    [
        ([1, 2], 2, ""),
        (None, 2, "prompt_token_ids is not a list"),
        ([1, "2"], 2, "prompt_token_ids is not a list"),
        ([1, -2], 2, "prompt_token_ids is not a list"),
        ([1, 2], None, "continuation_from is None"),
        ([1, 2], 0, "continuation_from is 0, and there are 3 messages"),
        ([1, 2], 4, "continuation_from is 4"),
        ([1, 2], 3, "leaves no message"),
    ],
)
def test_a_continuation_has_tokens_for_some_but_not_all_messages(
    tokens: Any, count: Any, said: str
) -> None:
    given = {"prompt_token_ids": tokens, "continuation_from": count}
    body = {"messages": TURNS} | {k: v for k, v in given.items() if v is not None}
    if not said:
        check_continuation(body)
        return
    with pytest.raises(RefusalError, match=said) as refused:
        check_continuation(body)
    assert refused.value.status == 400
