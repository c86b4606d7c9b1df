"""The tokens of conversations: each turn goes on from the last one, and no observation is trained.

With real tokenizers and chat templates, and the rules by which the sampler continues tokens. What
the model says is drawn: moves, calls of tools, and any tokens at all, ended or cut.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.environments.talk import session
from tests.sampler import qwen3
from tests.sampler.tiny import CHAT_TEMPLATE

from espalier.api.run.taskset import Taskset
from espalier.api.wire.gradients import ForwardBackwardRequest
from espalier.client.completion import Completion
from espalier.environments.environment import play
from espalier.environments.open_environment import open_environment
from espalier.sampler.continuation import PLACEHOLDERS, continued, continued_behind
from espalier.trainer.batch.data import datums
from espalier.trainer.batch.limits import Limits
from espalier.trainer.batch.packing import pack

QWEN = qwen3.make_tokenizer()
PLAIN = qwen3.make_tokenizer()
PLAIN.chat_template = CHAT_TEMPLATE.replace("<|end|>", qwen3.END)
END = QWEN.eos_token_id
DIRECTIONS = ("up", "down", "left", "right")


def called(name: str, **arguments: str) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


SAID = st.one_of(
    st.sampled_from([*DIRECTIONS, "<think>\nhm\n</think>\n\nleft", "calc: 1+1", "nonsense"]),
    st.sampled_from([called("move", direction=d) for d in DIRECTIONS]),
    st.sampled_from([called("calculate", expression="2*3"), called("other")]),
)
# Tokens that no tokenizer would give for their text, among them.
TOKENS = st.one_of(
    SAID.map(QWEN.encode),
    st.lists(st.integers(0, len(QWEN) - 1).filter(lambda t: t != END), min_size=1, max_size=8),
)
TURNS = st.lists(st.tuples(TOKENS, st.booleans()), min_size=6, max_size=6)


class Templated:
    """Says given tokens; prompts are rendered and continued as the sampler does it."""

    def __init__(self, tokenizer: Any, turns: Sequence[tuple[list[int], bool]]) -> None:
        self._tokenizer = tokenizer
        self._turns = iter(turns)

    async def sample(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        checkpoint: str = "",
        count: int = 1,
        temperature: float = 1.0,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        given = dict(extra or {})
        prompt = self._prompt(list(messages), given)
        tokens, ended = next(self._turns)
        output = [*tokens, END] if ended else tokens
        text = self._tokenizer.decode(tokens)
        calls = _calls(text) if given.get("tools") else ()
        reason = "stop" if ended else "length"
        logprobs = (-0.5,) * len(output)
        shown = "" if calls else text
        return [Completion(shown, tuple(prompt), tuple(output), logprobs, reason, tool_calls=calls)]

    def _prompt(self, messages: list[Mapping[str, Any]], given: dict[str, Any]) -> list[int]:
        whole = self._rendered(messages, given, prompted=True)
        if "prompt_token_ids" not in given:
            return whole
        exact, count = given["prompt_token_ids"], given["continuation_from"]
        earlier = self._rendered(messages[:count], given, prompted=False)
        found = continued(exact, earlier, whole, {END})
        if found is not None:
            return found
        one, other = (
            self._rendered(
                [
                    *messages[: count - 1],
                    {"role": messages[count - 1]["role"], "content": content},
                    *messages[count:],
                ],
                given,
                prompted=True,
            )
            for content in PLACEHOLDERS
        )
        return continued_behind(exact, (one, other), whole, {END})

    def _rendered(
        self, messages: list[Mapping[str, Any]], given: dict[str, Any], *, prompted: bool
    ) -> list[int]:
        rendered = self._tokenizer.apply_chat_template(
            [_parsed(message) for message in messages],
            tools=given.get("tools"),
            add_generation_prompt=prompted,
            return_dict=True,
        )
        return list(rendered["input_ids"])


def _calls(text: str) -> tuple[dict[str, Any], ...]:
    if not text.startswith("<tool_call>"):
        return ()
    try:
        found = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        function = {"name": found["name"], "arguments": json.dumps(found["arguments"])}
    except (ValueError, KeyError, TypeError):
        return ()
    return ({"id": "call", "type": "function", "function": function},)


def _parsed(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as vLLM gives them to a template: parsed."""
    calls = [
        {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
        for c in message.get("tool_calls", ())
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


SOURCES: dict[str, dict[str, Any]] = {
    "game in words": {"game2048": {"maxTurns": 6, "invalidMoves": {"limit": 99}}},
    "game by tool": {
        "game2048": {"maxTurns": 6, "protocol": "ToolCall", "invalidMoves": {"limit": 99}}
    },
    "calculator in words": {"calculator": {"maxTurns": 6}},
    "calculator by tool": {"calculator": {"maxTurns": 6, "protocol": "ToolCall"}},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tokenizer", [QWEN, PLAIN], ids=["qwen3", "plain"])
@given(turns=TURNS)
def test_turns_extend_each_other_and_only_what_was_sampled_is_a_target(
    tokenizer: Any, source: str, turns: list[tuple[list[int], bool]]
) -> None:
    environment = open_environment(Taskset.model_validate({"seed": 1, **SOURCES[source]}))
    talk = session(Templated(tokenizer, turns), rollout=1)  # type: ignore[arg-type]
    rollout = talk.rollout
    rollout.reward = asyncio.run(play(environment, environment.task(0), talk))
    played = rollout.turns
    assert [list(turn.token_ids) for turn in played] == [
        [*tokens, END] if ended else tokens for tokens, ended in turns[: len(played)]
    ]
    for turn, later in itertools.pairwise(played):
        before = (*turn.prompt_token_ids, *turn.token_ids)
        assert later.prompt_token_ids[: len(before)] == before
        assert len(later.prompt_token_ids) > len(before)
    alone = rollout.payload().model_copy(update={"group_id": None})
    request = ForwardBackwardRequest(inputs=[alone])
    found = datums(request, Limits(len(QWEN), 100_000), policies_compared=True)
    (row,) = pack(found, 100_000)
    # One sequence: the last turn with everything before it. Its last token predicts nothing.
    whole = (*played[-1].prompt_token_ids, *played[-1].token_ids)
    assert row.tokens.tolist() == list(whole[:-1])
    assert row.is_chain
    assert row.targets.tolist() == [token for turn in played for token in turn.token_ids]
    # Each is read where the token before it stands: no target lies in an observation.
    assert [whole[place + 1] for place in row.reads] == row.targets.tolist()
