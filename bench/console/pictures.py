"""Pictures of the console: ``python -m bench.console.pictures CHECKPOINTS docs/images``.

CHECKPOINTS is the folder of that name on the claim of `make demo` or `make try`: the objects are
made again from what the trainer wrote there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bench.console.served import NOW, served, signed_in
from playwright.async_api import Page
from tests.gateway.world import World, condition

from espalier.api.meta import decimal_string
from espalier.core.head.head_request import track
from espalier.gateway.world.world import NamespacedName

SCHEMES = ("light", "dark")


def restored(folder: Path) -> tuple[World, NamespacedName, dict[str, Path]]:
    """The objects, the model, and the files of kept rollouts."""
    found = [(path, json.loads((path / "state.json").read_text())) for path in folder.iterdir()]
    found.sort(key=lambda one: (one[1]["term"], one[1]["step"]))
    measured = {name: got for _, state in found for name, got in state["measured"].items()}
    world = World("default")
    model = world.model(found[0][1]["model"], conditions=[condition("Ready", "True", "Serving")])
    for path, state in found:
        _checkpoint(world, model, path.name.replace("-", ":", 1), state, measured)
    newest = found[-1][1]
    run = newest["run"].partition("/")[0]
    ready = condition("Ready", "True", "Training", f"step {newest['run_step']} of 20 is taken")
    world.put(
        "TrainingRun",
        run,
        spec={"modelRef": {"name": model.name}, "driver": "Runner", "steps": 20},
        status={"observedGeneration": 0, "step": newest["run_step"], "conditions": [ready]},
    )
    _head(world, model, found[-1][0].name.replace("-", ":", 1), newest)
    return world, model, {p.name[7:19]: p / "rollouts.jsonl" for p, _ in found}


def _name(state: dict[str, Any]) -> str:
    infix = "" if state["branch"] == "main" else f"{state['branch']}-"
    return f"{state['model']}-{infix}{state['step']:06d}"


def _head(world: World, model: NamespacedName, digest: str, newest: dict[str, Any]) -> None:
    current = {"name": _name(newest), "step": newest["step"], "term": newest["term"]}
    status = {"current": current | {"digest": digest}, "agreed": track().wire()}
    status["history"] = [current | {"reason": "Advanced", "time": NOW}]
    spec = {"modelRef": {"name": model.name}, "mode": "Track"}
    world.put("CheckpointHead", model.name, spec=spec, status={**status, "term": newest["term"]})


def _checkpoint(
    world: World,
    model: NamespacedName,
    digest: str,
    state: dict[str, Any],
    measured: dict[str, dict[str, float]],
) -> None:
    name = _name(state)
    figures = state["metrics"] | measured.get(name, {})
    metrics = [{"name": key, "value": decimal_string(value)} for key, value in figures.items()]
    spec: dict[str, Any] = {"modelRef": {"name": model.name}, "digest": digest, "uri": "pvc://w/x"}
    spec |= {name: state[name] for name in ("step", "branch", "term")}
    spec["runRef"] = {"name": state["run"].partition("/")[0]}
    if state["parent_name"]:
        spec["parentRef"] = {"name": state["parent_name"]}
    world.put("Checkpoint", name, spec=spec, status={"observedGeneration": 1, "metrics": metrics})


async def _take(page: Page, file: Path) -> None:
    picture = await page.screenshot(path=file, animations="disabled")
    print(f"{file}: {len(picture) // 1000} kB")


async def main(folder: Path, out: Path) -> None:
    world, model, kept = restored(folder)
    nodes = sorted(name.name for name in world.served.checkpoints)
    views = {
        "tree": f"tree/{nodes[len(nodes) // 2]}",
        "curves": "curves",
        "rollouts": f"rollouts/{nodes[-1]}/{nodes[0]}",
    }
    async with served(world, kept) as url, signed_in(url, model, 1100, 720) as page:
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            for view, place in views.items():
                await page.goto(f"{url}#/{model}/{place}")
                await page.locator("svg, canvas, article").first.wait_for()
                await page.wait_for_timeout(400)
                await _take(page, out / f"console-{view}-{scheme}.png")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
