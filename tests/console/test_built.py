"""What is built of the page: how large it is, and how it is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request
from dev.bom.packages import npm_packages
from tests.gateway.conftest import Gateway

from espalier.gateway.console.page import BUILT, POLICY, Page, read
from espalier.gateway.problems import RefusalError

pytestmark = pytest.mark.apiserver
MOST_BYTES = 300_000


def test_the_page_has_at_most_300_kb_compressed(packages: Path) -> None:
    files = read(BUILT)
    assert {"index.html", "app.js", "app.css", "icon.svg", "licenses.txt"} == set(files)
    assert sum(len(file.gzip) for file in files.values()) < MOST_BYTES
    assert b"://" not in files["index.html"].plain


def test_it_names_the_terms_of_each_package_that_an_image_is_said_to_be_made_of(
    packages: Path,
) -> None:
    parts = (BUILT / "licenses.txt").read_text().split("\n----\n\n")
    named = [part.partition("\n")[0] for part in parts]
    bundled = npm_packages(bundled=True)
    assert named == [f"{package.name} {package.version}" for package in bundled]
    assert all(len(part) > 500 for part in parts)


async def test_a_gateway_without_it_says_how_it_is_built(tmp_path: Path) -> None:
    request = make_mocked_request("GET", "/console/")
    with pytest.raises(RefusalError) as refused:
        await Page(tmp_path / "never").get(request)
    assert (refused.value.status, refused.value.reason) == (404, "ConsoleNotBuilt")


async def test_it_is_served_under_its_policy_and_not_again_unless_it_changed(
    packages: Path, gateway: Gateway
) -> None:
    page = await gateway.get("/console/", "")
    assert page.headers["Content-Security-Policy"] == POLICY
    assert "unsafe" not in POLICY
    script = await gateway.get("/console/app.js", "")
    tag = script.headers["ETag"]
    again = await gateway.request("GET", "/console/app.js", "", headers={"If-None-Match": tag})
    assert (script.status, again.status) == (200, 304)
    for path in ("/console/.key", "/console/..%2f__init__.py", "/console/app.js.gz"):
        assert (await gateway.get(path, "")).status == 404
    moved = await gateway.request("GET", "/console", "", allow_redirects=False)
    assert moved.headers["Location"] == "console/"
