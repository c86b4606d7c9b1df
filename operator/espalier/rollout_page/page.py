"""The page: the rollouts of a step, group by group.

It holds no script, and its policy lets the browser run and load none.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from espalier.rollout_page.difference import difference
from espalier.rollout_page.style import STYLE
from espalier.rollout_page.text import block, shown
from espalier.rollout_page.tokens import legend, tokens

Record = Mapping[str, Any]
# How records of the runner, of the Python client and of HUD's name the rewards of several scorers.
_PARTS = ("reward_parts", "rewards")


def page(
    title: str,
    records: Sequence[Record],
    *,
    facts: Mapping[str, str] | None = None,
    before: Sequence[Record] = (),
    before_name: str = "",
) -> str:
    """The page as text of HTML.

    Args:
        title: such as the name of the checkpoint that the step made.
        records: as ``espalier rollouts show --json`` prints them.
        facts: of the step, in the head of the page.
        before: records of an earlier checkpoint, whose answers to the same tasks are compared.
        before_name: its name.
    """
    groups = _grouped(records)
    earlier = _grouped(before)
    sections = [_section(task, group, earlier, before_name) for (_, task), group in groups.items()]
    said = " · ".join(f"{name} {value}" for name, value in (facts or {}).items())
    coloured = legend() if any(tokens(record) is not None for record in records) else ""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{shown(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{shown(title)}</h1><p class="facts">{shown(said)}</p>'
        f'<p class="note">{_counted(records, len(groups))}</p>{coloured}'
        f"{''.join(sections)}</body></html>\n"
    )


def _grouped(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records by group, or by task where they name none, in their order."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        task = str(record.get("task") or "")
        groups.setdefault((str(record.get("group") or task), task), []).append(record)
    return groups


def _counted(records: Sequence[Record], groups: int) -> str:
    trained = sum(bool(record.get("trained", True)) for record in records)
    return f"{len(records)} rollouts in {groups} groups, {trained} of them trained on"


def _section(
    task: str,
    group: Sequence[Record],
    earlier: Mapping[tuple[str, str], Sequence[Record]],
    before_name: str,
) -> str:
    answers = [r for (_, name), found in earlier.items() if task and name == task for r in found]
    rewards = [paid for record in group if (paid := _number(record.get("reward"))) is not None]
    mean = fmean(rewards) if rewards else None
    shown_mean = f", mean reward {mean:.3g}" if mean is not None else ""
    cards = [
        _card(record, mean, answers[index] if index < len(answers) else None, before_name)
        for index, record in enumerate(group)
    ]
    head = f"<h2>{shown(task or 'task without a name')}</h2>"
    note = f'<p class="note">{len(group)} rollouts{shown_mean}</p>'
    return f"<section>{head}{note}{_prompt(group[0])}{''.join(cards)}</section>"


def _prompt(record: Record) -> str:
    """What was asked: a chat, or the end of a prompt as text. Turns of other rollouts differ."""
    prompt = record.get("prompt")
    if not prompt:
        return ""
    messages = prompt if isinstance(prompt, list) else [{"role": "prompt", "content": prompt}]
    said = []
    for message in messages:
        role = message.get("role", "") if isinstance(message, Mapping) else ""
        content = message.get("content", "") if isinstance(message, Mapping) else message
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        said.append(f'<div class="role">{shown(str(role))}</div>{block(text)}')
    return f"<details open><summary>prompt</summary>{''.join(said)}</details>"


def _card(record: Record, mean: float | None, earlier: Record | None, before_name: str) -> str:
    trained = bool(record.get("trained", True))
    written = str(record.get("completion") or "")
    body = tokens(record) or block(written)
    compared = ""
    if earlier is not None:
        changes = difference(str(earlier.get("completion") or ""), written)
        of = f"changes since {before_name}, reward {_paid(_number(earlier.get('reward')))}"
        compared = f"<details><summary>{shown(of)}</summary>{changes}</details>"
    facts = "".join(f"<span>{name} {value}</span>" for name, value in _facts(record, mean))
    left = "" if trained else ' class="left"'
    return f"<article{left}><header>{facts}</header>{body}{_notes(record)}{compared}</article>"


def _facts(record: Record, mean: float | None) -> Iterable[tuple[str, str]]:
    reward = _number(record.get("reward"))
    tone = "bad" if reward is None or (mean is not None and reward < mean) else "good"
    yield "reward", f'<b class="{tone}">{_paid(reward)}</b>'
    for field in _PARTS:
        parts = record.get(field)
        if isinstance(parts, Mapping):
            for name, value in parts.items():
                yield shown(str(name)), f"<b>{shown(_paid(_number(value)))}</b>"
    given = _number(record.get("advantage"))
    if given is not None:
        yield "advantage", f"<b>{given:+.3g}</b>"
    elif reward is not None and mean is not None:
        yield "reward − mean of the group", f"<b>{reward - mean:+.3g}</b>"
    ended = record.get("stop_reason") or record.get("finish_reason")
    if ended:
        yield "ended by", f"<b>{shown(str(ended))}</b>"
    if record.get("tokens") is not None:
        yield "tokens", f"<b>{shown(str(record['tokens']))}</b>"
    if not record.get("trained", True):
        yield '<b class="bad">not trained on</b>', ""


def _notes(record: Record) -> str:
    notes = []
    for name in ("error", "scorer_errors", "tokens_left_out", "metadata"):
        if value := record.get(name):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            notes.append(f'<p class="note">{shown(name)}: {shown(text[:2000])}</p>')
    return "".join(notes)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _paid(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.3g}"
