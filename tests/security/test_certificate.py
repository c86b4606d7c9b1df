"""HTTPS of the gateway: the certificate of a mounted Secret, replaced while it serves."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dev.ports import free_port

from espalier.gateway.certificate import CHAIN, KEY, Certificate, CertificateError


def certificate_and_key() -> tuple[bytes, bytes]:
    """PEM of a certificate for localhost that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem), text


class Mounted:
    """A directory as the kubelet mounts a Secret: files behind a link that it moves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._count = 0

    def put(self, chain: bytes, key: bytes) -> None:
        self._count += 1
        version = self.root / f"..{self._count}"
        version.mkdir()
        (version / CHAIN).write_bytes(chain)
        (version / KEY).write_bytes(key)
        fresh = self.root / "..new"
        fresh.symlink_to(version.name)
        fresh.replace(self.root / "..data")
        for name in (CHAIN, KEY):
            if not (self.root / name).is_symlink():
                (self.root / name).symlink_to(f"..data/{name}")


async def asked(port: int, trusted: bytes) -> bool:
    """Whether a client that trusts this certificate alone gets an answer."""
    context = ssl.create_default_context(cadata=trusted.decode())
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            async with session.get(f"https://localhost:{port}/healthz") as reply:
                return reply.status == 200
        except aiohttp.ClientConnectorCertificateError:
            return False


async def says(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def until(seen: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            if await seen():
                return
            await asyncio.sleep(0.02)


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


Serve = Callable[[Certificate], Awaitable[int]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def started(certificate: Certificate) -> int:
        async def healthy(_: web.Request) -> web.Response:
            return web.Response(text="ok")

        app = web.Application()
        app.router.add_get("/healthz", healthy)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        port = free_port()
        await web.TCPSite(runner, "localhost", port, ssl_context=certificate.context).start()
        return port

    yield started
    for runner in runners:
        await runner.cleanup()


async def test_a_new_certificate_is_served_without_a_restart(
    mounted: Mounted, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = certificate_and_key(), certificate_and_key()
    mounted.put(*old)
    certificate = Certificate(mounted.root)
    port = await serve(certificate)
    following = asyncio.create_task(certificate.follow(0.02))
    assert await asked(port, old[0])
    assert not await asked(port, new[0])
    # What does not fit together is named and leaves what was served.
    mounted.put(new[0], old[1])
    await until(partial(says, caplog, "the certificate stays as it was"))
    assert await asked(port, old[0])
    mounted.put(*new)
    await until(lambda: asked(port, new[0]))
    assert not await asked(port, old[0])
    following.cancel()


async def test_what_is_no_certificate_is_refused_at_the_start_by_its_files(
    mounted: Mounted,
) -> None:
    mounted.put(b"nonsense", b"nonsense")
    with pytest.raises(CertificateError, match=r"tls\.crt and tls\.key are no certificate"):
        Certificate(mounted.root)
