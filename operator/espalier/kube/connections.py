"""Connections to the API server: settings, calls with a timeout, sessions for watches."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config
from multidict import CIMultiDict
from pydantic_core import from_json

from espalier.kube import queue_metrics
from espalier.kube.cluster import MANAGER, ClusterError
from espalier.kube.objects import Body
from espalier.telemetry import spans

REQUEST_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 10
CONNECTIONS = 20
RETRY_AFTER_MOST_SECONDS = 60.0


async def load_configuration() -> Configuration:
    """Connection settings: the file of KUBECONFIG if set, else the pod's service account.

    Raises kubernetes.aio's ConfigException when neither is there.
    """
    configuration = Configuration()
    if path := os.environ.get("KUBECONFIG"):
        await load_kube_config(config_file=path, client_configuration=configuration)
    else:
        load_incluster_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = CONNECTIONS
    # The configuration names the proxy: asking the environment would cost a thread per request.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


class ApiServerTransport:
    """One connection pool, timeouts on every call, tokens re-read."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._client.user_agent = MANAGER
        self._timeout = aiohttp.ClientTimeout(
            total=REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS
        )

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    def watch_session(self, *traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """A session of its own for watches, each of which holds one connection for good.

        Every request carries the token of that moment.
        """

        async def authenticate(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            for setting in (await self._configuration.auth_settings()).values():
                request.headers[setting["key"]] = setting["value"]
            return await handler(request)

        context: ssl.SSLContext = self._client.rest_client.ssl_context
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers={"User-Agent": MANAGER},
            middlewares=(authenticate,),
            proxy=self._configuration.proxy,
            trace_configs=list(traces),
            read_bufsize=2**21,
        )

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        *,
        more_headers: Sequence[tuple[str, str]] = (),
    ) -> Body:
        """The answer to one request; raises ClusterError.

        ``more_headers``: those of them that are alike are all sent.
        """
        status = 0
        try:
            _, url, headers, _, _ = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                auth_settings=["BearerToken"],
            )
            sent = CIMultiDict([*headers.items(), *more_headers])
            # A body is plain JSON already; the client would walk all of it to convert it.
            with spans.part(method, {"url.path": path}, kind="client"):
                response = await self._client.call_api(
                    method, url, sent, body, _request_timeout=self._timeout
                )
                status = response.status
                text = await response.read()
                spans.note({"http.response.status_code": status})
        except TimeoutError as error:
            raise ClusterError(
                0, "Timeout", f"{method} {path}: no answer within {REQUEST_TIMEOUT_SECONDS} s"
            ) from error
        except aiohttp.ClientError as error:
            raise ClusterError(0, "ConnectionFailed", f"{method} {path}: {error}") from error
        finally:
            queue_metrics.REQUESTS.labels(verb=method, code=status or "error").inc()
        if status >= 400:
            raise _refusal(status, text, f"{method} {path}", _retry_after(response.headers))
        # Twice as fast as json, and equal strings of a page are one.
        parsed: Body = from_json(text)
        return parsed


def _refusal(status: int, text: bytes, call: str, retry_after: float) -> ClusterError:
    """The error that a Status object (or a proxy's plain text) stands for."""
    try:
        answer: Any = json.loads(text)
        return ClusterError(status, answer["reason"], answer["message"], retry_after)
    except (ValueError, KeyError, TypeError):
        shown = text[:500].decode(errors="replace")
        return ClusterError(status, "Unknown", f"{call}: {shown}", retry_after)


def _retry_after(headers: Mapping[str, str]) -> float:
    """The header Retry-After in seconds, bounded; Kubernetes sends no dates in it."""
    text = headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_MOST_SECONDS) if text.isdecimal() else 0.0
