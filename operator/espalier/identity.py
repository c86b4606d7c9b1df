"""Short-lived EdDSA tokens between operator, gateway, trainer and rollouts (RFC 8037).

Operator and gateway hold the private key; trainer and rollout pods hold only the public one, in
``ESPALIER_PUBLIC_KEY`` (PEM), and accept tokens whose audience is their own ``namespace/model``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LIFETIME_SECONDS = 120
# Clocks of two nodes differ by less than this.
LEEWAY_SECONDS = 10

Subject = Literal["operator", "gateway"]


class IdentityError(Exception):
    """The token is missing, expired, forged or meant for another model."""


@dataclass(frozen=True)
class Caller:
    """Who called: the operator (control routes) or the gateway (data routes); under which epoch."""

    subject: Subject
    epoch: int


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


def issue(private_pem: str, subject: Subject, audience: str, epoch: int = 0) -> str:
    """A token for one model (``namespace/model``), valid for two minutes."""
    now = int(time.time())
    claims = {
        "iss": "espalier",
        "sub": subject,
        "aud": audience,
        "epoch": epoch,
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
    }
    return jwt.encode(claims, private_pem, algorithm="EdDSA")


def verify(public_pem: str, authorization: str | None, audience: str) -> Caller:
    """The caller behind an ``Authorization: Bearer`` header; raises IdentityError."""
    scheme, _, token = (authorization or "").partition(" ")
    # Other characters cannot be encoded where the token is checked.
    if scheme.lower() != "bearer" or not token or not token.isascii():
        raise IdentityError("send Authorization: Bearer <token>")
    try:
        claims = jwt.decode(
            token,
            public_pem,
            algorithms=["EdDSA"],
            audience=audience,
            issuer="espalier",
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub", "aud"]},
        )
    except jwt.PyJWTError as error:
        raise IdentityError(str(error)) from error
    if claims["sub"] not in ("operator", "gateway"):
        raise IdentityError(f"unknown subject {claims['sub']!r}")
    return Caller(subject=claims["sub"], epoch=int(claims.get("epoch", 0)))
