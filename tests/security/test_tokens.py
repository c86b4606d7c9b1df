"""Tokens that no pod may take, each forged in another way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from espalier import identity
from espalier.identity import LEEWAY_SECONDS, IdentityError, PublicKeys, issue, public_key, verify

OPERATOR, GATEWAY = identity.generate_private_key(), identity.generate_private_key()
KEYS = PublicKeys.of(OPERATOR, GATEWAY)
HERE = "team/arith/trainer/uid-1"

Claims = dict[str, Any]


def claims(**changes: Any) -> Claims:
    now = int(time.time())
    good = {
        "iss": "espalier",
        "sub": "operator",
        "aud": HERE,
        "term": 1,
        "iat": now,
        "exp": now + 60,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(key: str = OPERATOR, headers: Claims | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm="EdDSA", headers=headers)


def raw(header: Claims, body: Claims, sign: Callable[[bytes], bytes]) -> str:
    """A token put together by hand, since no library makes one such."""
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in (header, body)]
    text = b".".join(parts)
    return (text + b"." + base64.urlsafe_b64encode(sign(text)).rstrip(b"=")).decode()


def spliced(head: str, body: str) -> str:
    """The head and signature of one token around the claims of another."""
    first, _, last = head.split(".")
    return f"{first}.{body.split('.')[1]}.{last}"


def by_hmac(key: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.new(key, text, hashlib.sha256).digest()


PEM = KEYS.operator[0].encode()
RAW = serialization.load_pem_public_key(PEM).public_bytes(
    serialization.Encoding.Raw, serialization.PublicFormat.Raw
)
NOW = time.time
FORGED: dict[str, Callable[[], str]] = {
    "no algorithm": lambda: raw({"alg": "none"}, claims(), lambda _: b""),
    "no algorithm, in capitals": lambda: raw({"alg": "NONE"}, claims(), lambda _: b""),
    "HMAC with the public key": lambda: raw({"alg": "HS256"}, claims(), by_hmac(PEM)),
    "HMAC with its bytes": lambda: raw({"alg": "HS256"}, claims(), by_hmac(RAW)),
    "HMAC with nothing": lambda: raw({"alg": "HS256"}, claims(), by_hmac(b"")),
    "the right algorithm and no signature": lambda: raw({"alg": "EdDSA"}, claims(), lambda _: b""),
    "a key in the header": lambda: raw(
        {"alg": "EdDSA", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": ""}},
        claims(),
        lambda _: b"\0" * 64,
    ),
    "a key at a URL": lambda: signed(
        identity.generate_private_key(), {"jku": "http://attacker.example/keys", "kid": "../../x"}
    ),
    "another key": lambda: signed(identity.generate_private_key()),
    "the gateway's key": lambda: signed(GATEWAY),
    "the operator's key for the gateway": lambda: signed(sub="gateway"),
    "a subject of nobody": lambda: signed(sub="admin"),
    "two subjects": lambda: signed(sub=["operator", "gateway"]),
    "no subject": lambda: signed(sub=None),
    "another model": lambda: signed(aud="team/other/trainer/uid-1"),
    "another namespace": lambda: signed(aud="away/arith/trainer/uid-1"),
    "another role": lambda: signed(aud="team/arith/rollout/uid-1"),
    "the pod before": lambda: signed(aud="team/arith/trainer/uid-0"),
    "a part of the audience": lambda: signed(aud="team/arith/trainer"),
    "a pattern for an audience": lambda: signed(aud="team/arith/trainer/*"),
    "no audience": lambda: signed(aud=None),
    "another issuer": lambda: signed(iss="kubernetes/serviceaccount"),
    "no issuer": lambda: signed(iss=None),
    "expired": lambda: signed(exp=int(NOW()) - LEEWAY_SECONDS - 1),
    "without an end": lambda: signed(exp=None),
    "an end that is no number": lambda: signed(exp="never"),
    "without a beginning": lambda: signed(iat=None),
    "of tomorrow": lambda: signed(iat=int(NOW()) + 86_400, exp=int(NOW()) + 90_000),
    "not yet": lambda: signed(nbf=int(NOW()) + 3_600),
    "a changed body": lambda: spliced(signed(term=1), signed(term=2)),
    "two parts": lambda: ".".join(signed().split(".")[:2]),
    "five parts": lambda: signed() + ".a.b",
    "a body that is no object": lambda: raw({"alg": "EdDSA"}, [1], lambda _: b"\0" * 64),  # type: ignore[arg-type]
    "a megabyte": lambda: "a" * 2**20,
    "other characters": lambda: "\xff" * 9,
    "nothing": lambda: "",
}


def test_the_token_that_they_are_forged_from_is_taken() -> None:
    assert verify(KEYS, f"Bearer {signed()}", HERE).subject == "operator"
    assert verify(KEYS, f"Bearer {issue(GATEWAY, 'gateway', HERE, 7)}", HERE).term == 7


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_nobodys(name: str) -> None:
    with pytest.raises(IdentityError):
        verify(KEYS, f"Bearer {FORGED[name]()}", HERE)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic eDp5", "bearer", "Bearer\tx"])
def test_what_is_no_bearer_token_is_nobodys(header: str | None) -> None:
    with pytest.raises(IdentityError):
        verify(KEYS, header, HERE)


@pytest.mark.parametrize("term", ["x", [], {}, None, -1, 1.5, 2**70])
def test_a_term_that_is_none_does_not_get_through_as_one(term: object) -> None:
    """Only a key of ours signs a term at all; what it says must still be a whole number."""
    token = jwt.encode(claims() | {"term": term}, OPERATOR, algorithm="EdDSA")
    with pytest.raises(IdentityError):
        verify(KEYS, f"Bearer {token}", HERE)


def test_a_public_key_makes_no_token() -> None:
    with pytest.raises((jwt.PyJWTError, ValueError, AttributeError)):
        issue(public_key(OPERATOR), "operator", HERE)
