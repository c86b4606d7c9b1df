"""An MCP server of tools that starts and stops with HUD's environment."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastmcp import FastMCP
from hud import Environment
from hud.capabilities import Capability


def serve(environment: Environment, tools: FastMCP) -> None:
    """Starts and stops the tools with the environment, on a port that is free."""
    served: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    @environment.initialize
    async def up() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        # Answers as JSON: one of these servers that ends closes the event streams of all others.
        application = tools.http_app(json_response=True, stateless_http=True)
        config = uvicorn.Config(
            application, log_level="error", ws="none", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        served.append((server, asyncio.create_task(server.serve(sockets=[listening]))))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
        environment.add_capability(Capability.mcp(name="tools", url=url))

    @environment.shutdown
    async def down() -> None:
        while served:
            server, running = served.pop()
            server.should_exit = True
            await running
