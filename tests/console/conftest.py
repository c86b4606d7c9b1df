"""The console's page in a real browser, over a gateway with reviews by the API server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect
from tests.gateway.conftest import Gateway, cluster, gateway, lookers, upstream, users

__all__ = ["cluster", "gateway", "lookers", "upstream", "users"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_MILLISECONDS = 20_000
# Everything that the policy of the page stops.
VIOLATIONS = """
violations = [];
addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective));
"""


@pytest.fixture(scope="session")
def packages() -> Path:
    """Builds the page; the folder of its npm packages."""
    done = subprocess.run(
        [ROOT / "dev/console.sh", "test"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@dataclass
class Visit:
    """A browser at the console's page, and what went wrong in it."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)

    async def sign_in(self, token: str) -> None:
        await self.page.goto(self.url)
        await self.page.get_by_label("Token").fill(token)
        await self.page.get_by_role("button", name="Sign in").click()

    async def violations(self) -> list[str]:
        found: list[str] = await self.page.evaluate("violations")
        return found + self.errors


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a browser, still empty."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = await browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        expect.set_options(timeout=PATIENCE_MILLISECONDS)
        yield page
        await browser.close()


@pytest.fixture
async def visit(packages: Path, page: Page, gateway: Gateway) -> Visit:
    await page.add_init_script(VIOLATIONS)
    visit = Visit(page, str(gateway.server.make_url("/console/")))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    return visit


Checked = Callable[[Page], Any]


@pytest.fixture
def axe(packages: Path) -> Checked:
    """Finds what those who do not see the page, or use no mouse, would stumble over."""
    script = (packages / "node_modules/axe-core/axe.min.js").read_text()

    async def check(page: Page) -> list[str]:
        # As the browser's own tools do it, beside the page's policy.
        await page.evaluate(script)
        found = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{rule['id']}: {node['html'][:160]}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]

    return check
