"""What of an API key is stored, and which key is let in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.issued_key import Issued, issued

from espalier.core.api_keys import Fault, StoredKey, duration, fault, presented, read_entries

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UID = "3b2f"


def stored(key: Issued) -> StoredKey:
    (found,) = read_entries({key.entry: key.text})[0].values()
    return found


@pytest.mark.parametrize("namespace", ["ml", "team-a-0123456789ab", "x" * 63])
def test_a_key_names_its_namespace_and_id_and_its_secret_is_nowhere_stored(namespace: str) -> None:
    key = issued(namespace, "ann", UID)
    found = presented(key.key)
    assert found is not None
    assert (found.namespace, found.id) == (namespace, key.id)
    assert fault(found, stored(key), UID, NOW) is None
    assert key.key.rpartition("-")[2] not in key.text


@pytest.mark.parametrize(
    "text",
    ["tml-", "tml-ml-0123-45", "sk-ml", "tml-ML-{id}-{secret}", "tml-ml-{id}-{secret}0", "tml-é"],
)
def test_any_other_text_is_no_key(text: str) -> None:
    assert presented(text.format(id="0" * 12, secret="0" * 64)) is None


@pytest.mark.parametrize(
    ("changed", "uid", "later", "why"),
    [
        ("0" * 64, UID, timedelta(0), "Unknown"),
        ("", UID, timedelta(days=1), "Expired"),
        ("", None, timedelta(0), "AccountGone"),
        ("", "another", timedelta(0), "AccountGone"),
    ],
    ids=["another secret", "its time is over", "no account", "a new account of that name"],
)
def test_a_key_that_is_not_let_in_is_told_why(
    changed: str, uid: str | None, later: timedelta, why: Fault
) -> None:
    key = issued("ml", "ann", UID, expires=NOW + timedelta(days=1))
    text = key.key[:-64] + changed if changed else key.key
    found = presented(text)
    assert found is not None
    assert fault(found, stored(key), uid, NOW + later) == why


@pytest.mark.parametrize("scopes", ['["root"]', "[]", "null"])
def test_an_entry_that_is_wrong_lets_nobody_in_and_harms_no_other(scopes: str) -> None:
    good, bad = issued("ml", "ann", UID), issued("ml", "bob", UID)
    text = bad.text.replace('["read","sample","train","promote"]', scopes)
    assert text != bad.text
    other = {"x": good.text, "0123456789ab.other/ann": good.text}
    found, unreadable = read_entries({bad.entry: text, good.entry: good.text, **other})
    assert list(found) == [good.id]
    assert unreadable == (bad.entry, *other)


def test_an_account_of_another_namespace_cannot_be_said() -> None:
    key = issued("ml", "ann", UID)
    text = key.text.replace("{", '{"namespace":"kube-system",', 1)
    assert read_entries({key.entry: text}) == ({}, (key.entry,))


@pytest.mark.parametrize(
    ("text", "length"),
    [("90m", timedelta(minutes=90)), ("12h", timedelta(hours=12)), ("30d", timedelta(days=30))],
)
def test_a_time_is_a_number_of_minutes_hours_or_days(text: str, length: timedelta) -> None:
    assert duration(text) == length


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "1.5h", "1w", "99999999d"])
def test_any_other_time_is_none(text: str) -> None:
    assert duration(text) is None
