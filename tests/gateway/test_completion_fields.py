"""Fields of a completion that are the gateway's own."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.gateway.problems import RefusalError
from espalier.gateway.routes.completion_fields import (
    check_continuation,
    check_honoured,
    check_rendering,
    reference,
)

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


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"renderer_name": None}, ""),
        ({"renderer_name": "chat_template"}, ""),
        ({"renderer_name": "qwen3"}, "renderer_name is 'qwen3'"),
        ({"renderer_name": 3}, "renderer_name is 3"),
        ({"prompt_chunks": [{"type": "text"}]}, "prompt_chunks is not taken"),
        ({"messages": [{"content": [{"type": "text", "text": "1"}]}, {"content": None}]}, ""),
        (
            {"messages": [{"content": "1"}, {"content": [{"type": "text"}, IMAGE]}]},
            r"messages\[1\].content\[1\] is of type image_url: only text",
        ),
        ({"messages": [{"content": [{"type": "input_audio"}]}]}, "is of type input_audio"),
        # vLLM would fetch the URL of each of these.
        ({"messages": [{"content": [{"image_url": "http://169.254.169.254/"}]}]}, "of type None"),
        (
            {
                "messages": [
                    {"content": [{"type": "text", "text": "a", "uuid": "u", "audio_url": "x"}]}
                ]
            },
            r"content\[0\] has a uuid",
        ),
        ({"messages": [{"content": [{"type": ["text"], "text": "a"}]}]}, "is of type"),
        ({"messages": [{"content": [{"type": "video_url", "video_url": "x"}]}]}, "video_url"),
        # What has no such form is the rollout's to judge.
        ({"messages": "no list"}, ""),
        ({"messages": ["no object"]}, ""),
    ],
)
def test_only_text_is_sampled_and_only_the_models_template_renders_it(
    fields: dict[str, Any], said: str
) -> None:
    body = {"messages": TURNS} | fields
    if not said:
        check_rendering(body)
        assert "renderer_name" not in body
        return
    with pytest.raises(RefusalError, match=said) as refused:
        check_rendering(body)
    assert refused.value.status == 400
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"n": 3, "best_of": 3}, ""),
        ({"n": 2, "best_of": 3}, "best_of is not taken beside n 2"),
        ({"priority": 0, "vllm_xargs": {}}, ""),
        ({"priority": 5}, "priority has no effect"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params has no effect"),
        ({"watermarking": True}, "watermarking has no effect"),
        ({"user": "u-7"}, "user has no effect"),
        ({"use_beam_search": True, "prompt_logprobs": 0}, "prompt_logprobs is not computed"),
        ({"structured_outputs": {"regex": "a"}}, ""),
        (
            {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace has no effect",
        ),
    ],
)
def test_what_the_server_would_leave_out_is_refused(fields: dict[str, Any], said: str) -> None:
    if not said:
        check_honoured(fields)
        return
    with pytest.raises(RefusalError, match=said) as refused:
        check_honoured(fields)
    assert refused.value.status == 400
    assert refused.value.remedy


@pytest.mark.parametrize("given", ["a{1,9}", 7, ["a"], True])
def test_structured_outputs_that_are_no_object_are_refused(given: object) -> None:
    with pytest.raises(RefusalError, match="structured_outputs is no object"):
        check_honoured({"model": "arith", "prompt": "x", "structured_outputs": given})
