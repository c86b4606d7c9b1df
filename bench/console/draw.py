"""How long the console takes to draw a tree of 1,000 checkpoints: ``python -m bench.console.draw``.

Of the page alone: from the parsed answer until the browser has laid it out. The first paint, and
the whole way from the address to the drawn tree, are measured beside it.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from bench.console.served import served, signed_in
from playwright.async_api import Page
from tests.gateway.world import World

from espalier.gateway.world.world import NamespacedName

CHECKPOINTS, BRANCHES = 1000, 8
RUNS = 7
MODEL = NamespacedName("home", "arith")
GOAL_MILLISECONDS = 200.0


def grown() -> World:
    """A model whose head was rolled back a few times."""
    world = World(MODEL.namespace)
    world.model(MODEL.name, MODEL.namespace)
    each, parent, start = CHECKPOINTS // BRANCHES, "", 0
    for term in range(1, BRANCHES + 1):
        for step in range(start + 1, start + each + 1):
            parent = _node(world, parent, step, term)
        last, start = (parent, step), start + each // 2
        parent = _name(start, term)
    world.head(MODEL, "sha256:" + "1" * 64, checkpoint=last[0], step=last[1], term=BRANCHES)
    return world


def _name(step: int, term: int) -> str:
    return f"{MODEL.name}-{f'b{term}-' if term > 1 else ''}{step:06d}"


def _node(world: World, parent: str, step: int, term: int) -> str:
    spec: dict[str, Any] = {"modelRef": {"name": MODEL.name}, "step": step, "term": term}
    spec |= {"branch": f"b{term}" if term > 1 else "main", "runRef": {"name": "arith-20"}}
    spec |= {"uri": "pvc://weights/x", "digest": f"sha256:{term:032x}{step:032x}"}
    spec |= {"parentRef": {"name": parent}} if parent else {}
    metrics = [{"name": "reward/mean", "value": f"{step % 97 / 97:.4f}"}]
    status = {"observedGeneration": 1, "metrics": metrics}
    world.put("Checkpoint", _name(step, term), MODEL.namespace, spec=spec, status=status)
    return _name(step, term)


async def _once(page: Page, url: str) -> dict[str, float]:
    await page.goto(f"{url}#/{MODEL}/tree")
    await page.reload()
    await page.locator("circle").nth(CHECKPOINTS - 1).wait_for()
    figures: dict[str, float] = await page.evaluate(
        """() => ({
          drawn: performance.getEntriesByName('tree').at(-1).duration,
          paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,
          whole: performance.now(),
        })"""
    )
    return figures


async def main() -> None:
    async with served(grown()) as url, signed_in(url, MODEL, 1400, 900) as page:
        found = [await _once(page, url) for _ in range(RUNS)]
    for name, said in (
        ("drawn", f"1,000 checkpoints drawn (goal {GOAL_MILLISECONDS:.0f} ms)"),
        ("paint", "first paint of the page"),
        ("whole", "from the address to the drawn tree, at most"),
    ):
        values = [run[name] for run in found]
        print(f"{said}: median {statistics.median(values):.0f} ms, worst {max(values):.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
