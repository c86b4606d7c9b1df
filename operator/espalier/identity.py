"""Short-lived EdDSA tokens between operator, gateway, trainer and rollouts (RFC 8037).

Operator and gateway each hold a private key of their own; trainer and rollout pods hold only the
public ones, of ``ESPALIER_PUBLIC_KEYS``, and accept tokens whose audience is their own
``namespace/model/role/uid``: a token that one pod was shown is of no use at another. While keys
rotate, a subject has several: core/key_ring.py.

Whoever scrapes metrics has one token of the operator for all of these pods, which opens /metrics
and nothing else: its audience is no pod's, and its subject none that ``verify`` knows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LIFETIME_SECONDS = 120
# Clocks of two nodes differ by less than this.
LEEWAY_SECONDS = 10
_TERMS = 1 << 63

SCRAPE_SECONDS = 86_400
SCRAPER, SCRAPE_AUDIENCE = "scraper", "espalier-metrics"

Subject = Literal["operator", "gateway"]
PUBLIC_KEYS = "ESPALIER_PUBLIC_KEYS"
# Secrets in the operator's namespace, made by the operator, and their field that holds the PEM.
OPERATOR_KEY_SECRET = "espalier-signing-key"
GATEWAY_KEY_SECRET = "espalier-gateway-key"
PRIVATE_KEY_FIELD = "private.pem"
SCRAPE_TOKEN_SECRET = "espalier-scrape-token"
SCRAPE_TOKEN_FIELD = "token"


class IdentityError(Exception):
    """The token is missing, expired, forged or meant for another pod."""


@dataclass(frozen=True)
class PublicKeys:
    """By whose keys (PEM) a token of each subject must be signed: neither can act as the other."""

    operator: tuple[str, ...]
    gateway: tuple[str, ...]

    @classmethod
    def of(cls, operator: str, gateway: str) -> PublicKeys:
        """The public halves of two private keys (PEM)."""
        return cls(operator=(public_key(operator),), gateway=(public_key(gateway),))

    @classmethod
    def read(cls, text: str) -> PublicKeys:
        """What ``text`` wrote, or a PEM in place of a list; ValueError says what is wrong."""
        try:
            given = {name: _listed(keys) for name, keys in json.loads(text).items()}
            return cls(**given)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"must be a JSON object of operator and gateway, each a list of PEMs: {error}"
            ) from error

    def text(self) -> str:
        """As a pod reads it."""
        return json.dumps({"operator": self.operator, "gateway": self.gateway}, sort_keys=True)

    def now(self) -> PublicKeys:
        """Themselves: these do not change."""
        return self


class TrustedKeys(Protocol):
    """The public keys that a pod believes, which may be replaced while it runs."""

    def now(self) -> PublicKeys:
        """The keys of this moment."""


@dataclass
class Signer:
    """The private key (PEM) that signs now; whoever rotates keys replaces it."""

    private_key: str


@dataclass(frozen=True)
class Caller:
    """Who called: the operator (control routes) or the gateway (data routes); under which term."""

    subject: Subject
    term: int


def generate_private_key() -> str:
    """A new Ed25519 private key as PEM."""
    return (
        Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


def public_key(private_pem: str) -> str:
    """The public half of a private key, as PEM."""
    key = serialization.load_pem_private_key(private_pem.encode(), password=None)
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def issue(private_pem: str, subject: Subject, audience: str, term: int = 0) -> str:
    """A token for one pod (see ``names.audience``), valid for two minutes."""
    claims = {**_times(LIFETIME_SECONDS), "sub": subject, "aud": audience, "term": term}
    return jwt.encode(claims, private_pem, algorithm="EdDSA")


def issue_scrape(operator_pem: str) -> str:
    """A token that opens /metrics of every trainer and sampler for a day."""
    claims = {**_times(SCRAPE_SECONDS), "sub": SCRAPER, "aud": SCRAPE_AUDIENCE}
    return jwt.encode(claims, operator_pem, algorithm="EdDSA")


def scrape_is_fresh(token: str, operator_pem: str) -> bool:
    """Whether a token for scraping is of this key and has more than half its time left."""
    try:
        claims = _signed(token, public_key(operator_pem), SCRAPE_AUDIENCE)
    except jwt.PyJWTError:
        return False
    return float(claims["exp"]) - time.time() > SCRAPE_SECONDS / 2


def verify(keys: TrustedKeys, authorization: str | None, audience: str) -> Caller:
    """The caller behind an ``Authorization: Bearer`` header; raises IdentityError."""
    token = _bearer(authorization)
    try:
        # Not believed yet: it only says by which key to verify the token, this claim included.
        subject = jwt.decode(token, options={"verify_signature": False}).get("sub")
        if subject not in ("operator", "gateway"):
            raise IdentityError(f"unknown subject {subject!r}")
        found = keys.now()
        claims = _claims(
            token, found.operator if subject == "operator" else found.gateway, audience
        )
    except jwt.PyJWTError as error:
        raise IdentityError(str(error)) from error
    term = claims.get("term", 0)
    if type(term) is not int or not 0 <= term < _TERMS:
        raise IdentityError("the token's term is no whole number below 2^63")
    return Caller(subject=claims["sub"], term=term)


def verify_scraper(keys: TrustedKeys, authorization: str | None) -> None:
    """Raises IdentityError unless the header has a token for scraping."""
    token = _bearer(authorization)
    try:
        claims = _claims(token, keys.now().operator, SCRAPE_AUDIENCE)
    except jwt.PyJWTError as error:
        raise IdentityError(str(error)) from error
    if claims["sub"] != SCRAPER:
        raise IdentityError("the token is not for scraping")


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    # Other characters cannot be encoded where the token is checked.
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise IdentityError("send Authorization: Bearer <token>")
    return token


def _times(seconds: int) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": "espalier", "iat": now, "exp": now + seconds}


def _claims(token: str, keys: Sequence[str], audience: str) -> dict[str, Any]:
    """The claims, by the one of these keys that signed them; raises what the last one found."""
    *others, last = keys
    for key in others:
        with suppress(jwt.InvalidSignatureError):
            return _signed(token, key, audience)
    return _signed(token, last, audience)


def _signed(token: str, key: str, audience: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["EdDSA"],
        audience=audience,
        issuer="espalier",
        leeway=LEEWAY_SECONDS,
        options={"require": ["exp", "iat", "sub", "aud"]},
    )
    return claims


def _listed(keys: object) -> tuple[str, ...]:
    found = tuple(keys) if isinstance(keys, list) else (keys,)
    if not found or not all(isinstance(key, str) and key for key in found):
        raise ValueError("a key is no text")
    return found
