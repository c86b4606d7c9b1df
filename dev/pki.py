"""Certificates and kubeconfigs for one throw-away API server."""

from __future__ import annotations

import base64
import datetime
import ipaddress

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=7)
SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
SERVER_ADDRESSES = ("127.0.0.1", "10.96.0.1")

PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey


def _private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def signing_pair() -> tuple[bytes, bytes]:
    """Private and public PEM for service-account tokens."""
    key = generate_private_key(SECP256R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _private_pem(key), public


class Authority:
    """A certificate authority that lives in memory.

    Args:
        name: of its certificate, as a host too.
        lifetime: of what it issues, and its own.
        rsa: whether its key is one of RSA, which some programs take alone.
    """

    def __init__(
        self, name: str, lifetime: datetime.timedelta = LIFETIME, *, rsa: bool = False
    ) -> None:
        self._lifetime = lifetime
        self._key: PrivateKey = (
            generate_rsa(65537, 2048) if rsa else generate_private_key(SECP256R1())
        )
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(self._name, self._name, self._key, lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.key_pem = _private_pem(self._key)

    def issue(
        self, name: str, organization: str = "", server: bool = False, hosts: tuple[str, ...] = ()
    ) -> tuple[bytes, bytes]:
        """Certificate and key as PEM; the organization is the user's group in Kubernetes.

        A server's has ``hosts`` beside the names and addresses of an API server.
        """
        key = generate_private_key(SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(x509.Name(attributes), self._name, key, self._lifetime).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if server:
            names: list[x509.GeneralName] = [x509.DNSName(h) for h in (*SERVER_NAMES, *hosts)]
            names += [x509.IPAddress(ipaddress.ip_address(a)) for a in SERVER_ADDRESSES]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _private_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, lifetime: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + lifetime)
    )


def kubeconfig(url: str, authority: bytes, certificate: bytes, key: bytes) -> str:
    """A kubeconfig with everything embedded."""

    def encoded(content: bytes) -> str:
        return base64.b64encode(content).decode()

    cluster = {"server": url, "certificate-authority-data": encoded(authority)}
    user = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    context = {"cluster": "espalier", "user": "espalier"}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "espalier", "cluster": cluster}],
            "users": [{"name": "espalier", "user": user}],
            "contexts": [{"name": "espalier", "context": context}],
            "current-context": "espalier",
        }
    )
