"""The page of rollouts: what it shows, and that nothing hostile gets out of its text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from espalier.rollout_page import page
from espalier.rollout_page.difference import difference
from espalier.rollout_page.text import CHARS_MOST, attribute, block, shown
from espalier.rollout_page.tokens import colour, tokens

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style><style>body{display:none}</style>",
    "</title></div></article><iframe src=//evil>",
    "javascript:alert(1)",
    "&lt;b&gt;<!-- --><![CDATA[ ]]>",
    "\u202egnp.exe\u2066 \u200f\x00\x1b[31m\ud800",
)
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "section", "article"),
    *("header", "span", "b", "div", "details", "summary", "ins", "del"),
}


class Read(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.said: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return "".join(self.said)


def record(**changes: Any) -> dict[str, Any]:
    return {
        "task": "sums/0",
        "prompt": [{"role": "user", "content": "3 + 4"}],
        "completion": "It is 7",
        "reward": 1.0,
        "tokens": 3,
        "finish_reason": "stop",
        "trained": True,
        **changes,
    }


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["before", "title", "facts", "record"])
def test_no_text_becomes_markup(text: str, place: str) -> None:
    mine = dict.fromkeys(
        ("task", "completion", "finish_reason", "error", "tokens", "stop_reason"), text
    )
    hostile = record(
        **mine,
        prompt=[{"role": text, "content": text}, text, {"content": [text]}],
        token_texts=[text],
        logprobs=[-1.0],
        rewards={text: 1.0},
        metadata={text: text},
        scorer_errors=[{"cause": text}],
    )
    plain = [record(task=text)]
    made = page(
        text if place == "title" else "tiny-000001",
        [hostile] if place == "record" else plain,
        facts={text: text} if place == "facts" else None,
        before=[record(task=text, completion=text)] if place == "before" else [],
        before_name=text,
    )
    read = Read(made)
    assert read.open == []
    assert set(read.elements) <= ALLOWED
    assert read.attributes <= {
        *("lang", "charset", "http-equiv", "content", "name", "class", "dir", "title", "open"),
    }
    # One style, which is ours, and nothing that a browser would fetch.
    assert read.elements.count("style") == 1
    made.encode()


def test_controls_are_shown_by_their_numbers() -> None:
    assert shown("a\u202eb") == 'a<span class="control">U+202E</span>b'
    assert shown("\ud800\x00") == (
        '<span class="control">U+D800</span><span class="control">U+0000</span>'
    )
    assert shown("a\n\tb") == "a\n\tb"
    assert attribute("\"\u202e'") == "&quot;U+202E&#x27;"


def test_the_browser_may_run_and_load_nothing() -> None:
    made = page("tiny-000001", [record()])
    assert "default-src 'none'" in made
    assert "http://" not in made and "https://" not in made and "url(" not in made


def test_a_rollout_shows_what_it_earned_and_how_it_ended() -> None:
    rows = [
        record(rewards={"correct": 1.0, "format": 0.5}, finish_reason="length"),
        record(completion="It is 8", reward=0.0, trained=False),
        record(reward=None, scorer_errors=[{"cause": "Timeout"}]),
    ]
    said = Read(page("tiny-000001", rows, facts={"step": "3"})).text
    for part in ("step 3", "3 rollouts in 1 groups, 2 of them trained on", "mean reward 0.5"):
        assert part in said
    for part in ("reward 1", "correct 1", "format 0.5", "ended by length", "tokens 3"):
        assert part in said
    assert "reward − mean of the group +0.5" in said
    assert "reward − mean of the group -0.5" in said
    assert "not trained on" in said
    assert 'scorer_errors: [{"cause": "Timeout"}]' in said


def test_an_advantage_that_the_record_names_is_shown_instead_of_a_guess() -> None:
    said = Read(page("t", [record(advantage=-0.25)])).text
    assert "advantage -0.25" in said
    assert "mean of the group" not in said


def test_groups_of_one_task_stay_apart_by_their_ids() -> None:
    rows = [record(group="a"), record(group="b"), record(group="a")]
    assert Read(page("t", rows)).elements.count("section") == 2


def test_the_answer_of_an_earlier_checkpoint_is_compared() -> None:
    before = [record(completion="It is 8", reward=0.0), record(task="sums/1", completion="x")]
    made = page("tiny-000002", [record()], before=before, before_name="tiny-000001")
    assert "changes since tiny-000001, reward 0" in made
    assert "It is <del>8</del><ins>7</ins>" in made
    assert "x" not in Read(made).text.split("changes since")[1]


def test_long_answers_are_cut_and_not_compared() -> None:
    assert "5 more characters" in block("x" * (CHARS_MOST + 5))
    assert "not compared" in difference("a " * 2000, "b")
    assert difference("same", "same") == '<p class="note">the same answer</p>'


@pytest.mark.parametrize(
    ("probability", "number"), [(0.0, 0), (-0.2, 1), (-1.0, 2), (-2.5, 3), (-4.0, 4), (-9.0, 5)]
)
def test_a_token_is_coloured_by_its_log_prob(probability: float, number: int) -> None:
    assert colour(probability) == number


def test_tokens_are_shown_with_their_log_probs() -> None:
    made = tokens(record(token_texts=["It", " is", ""], logprobs=[-0.01, -5.0, -1], tokens=5))
    assert made is not None
    assert '<span class="p0" title="log-prob -0.01, probability 0.99">It</span>' in made
    assert '<span class="p5" title="log-prob -5, probability 0.00674"> is</span>' in made
    assert "2 more tokens" in made


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"token_texts": ["a"]},
        {"token_texts": ["a"], "logprobs": []},
        {"token_texts": ["a"], "logprobs": ["<b>"]},
        {"token_texts": "a", "logprobs": [1]},
        {"token_texts": [1], "logprobs": [1]},
    ],
)
def test_tokens_that_do_not_match_are_no_tokens(given: dict[str, Any]) -> None:
    assert tokens(given) is None
    assert "It is 7" in Read(page("t", [record(**given)])).text
