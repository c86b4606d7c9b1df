"""The console in Chromium: what a person sees, reads and does there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from dev.apiserver import ApiServer
from playwright.async_api import Page, expect
from tests.console.conftest import Checked, Visit
from tests.gateway.conftest import Gateway
from tests.gateway.test_console import live, node, stored, tree

pytestmark = pytest.mark.apiserver
HOSTILE = "<img src=x onerror=alert(1)></div><script>alert(1)</script>\u202egnp.exe"


def rollout(completion: str, reward: float, **more: Any) -> dict[str, Any]:
    return {"task": "7 + 5", "completion": completion, "reward": reward, "trained": True, **more}


KEPT = {
    "arith@" + "1" * 12: [rollout("the answer is 11", 0.0)],
    "arith@" + "2" * 12: [
        rollout(
            "the answer is 12",
            1.0,
            prompt=[
                {"role": "user", "content": HOSTILE},
                {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]},
                {"role": "tool", "name": "add", "content": "12"},
            ],
            reward_parts={"exact": 1.0},
            token_texts=["the", " answer", " is", " 12", HOSTILE],
            logprobs=[-0.01, -0.5, -2.0, -4.0, None],
        ),
        rollout(HOSTILE, 0.0, trained=False, error=HOSTILE, task="7 + 5"),
    ],
}


async def sampler(request: web.Request) -> web.Response:
    """A pod that keeps rollouts and answers as the model would."""
    if request.method == "POST":
        asked = json.loads(await request.read())
        said = "twelve" if "@1" in asked["model"] else HOSTILE
        logprobs = {"content": [{"token": said, "logprob": -0.1, "bytes": [], "top_logprobs": []}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        choice |= {"finish_reason": "stop", "logprobs": logprobs}
        return web.json_response(
            {"id": "x", "object": "chat.completion", "created": 1, "choices": [choice]}
            | {"model": asked["model"], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        )
    records = KEPT.get(request.query["checkpoint"], [])
    return web.json_response({"records": records, "total": len(records), "next": None})


async def go(page: Page, view: str) -> None:
    await page.get_by_role("link", name=view, exact=True).click()


async def test_a_tree_is_drawn_grows_and_is_rolled_back_by_a_button(
    visit: Visit, gateway: Gateway, apiserver: ApiServer, lookers: dict[str, str]
) -> None:
    page, model = visit.page, tree(gateway.world)
    stored(apiserver, model)
    await visit.sign_in("nonsense")
    await expect(page.get_by_role("alert")).to_contain_text("does not accept the token")
    await visit.sign_in(lookers["mover"])
    await page.get_by_role("link", name=str(model)).click()
    nodes = page.get_by_role("option")
    await expect(nodes).to_have_count(3)
    await expect(page.get_by_role("status").first).to_have_text("live")
    node(gateway.world, model, "arith-b2-000003", "4", step=3, term=2, branch="b2", reward="0.75")
    await expect(nodes).to_have_count(4)
    await page.locator("#node-arith-000002").click()
    details = page.get_by_role("region", name="arith-000002")
    await expect(details).to_contain_text("0.5 (95 %: 0.4 to 0.6) of 20 tasks")
    await details.get_by_label("Training meanwhile").select_option("Pause")
    await details.get_by_role("button", name="Serve arith-000002 from arith").click()
    await expect(details.get_by_role("status")).to_contain_text("Asked for")
    spec = live(apiserver, model)["spec"]
    asked = (spec["mode"], spec["checkpointRef"]["name"], spec["onPin"])
    assert asked == ("Pin", "arith-000002", "Pause")
    assert lookers["mover"] not in page.url
    assert await page.context.cookies() == []
    assert await visit.violations() == []


async def test_who_may_not_move_a_head_is_told_and_who_leaves_it_to_git_gets_the_commit(
    visit: Visit, gateway: Gateway, apiserver: ApiServer, lookers: dict[str, str]
) -> None:
    page, model = visit.page, tree(gateway.world)
    stored(apiserver, model)
    await visit.sign_in(lookers["looker"])
    await page.get_by_role("link", name=str(model)).click()
    await page.locator("#node-arith-000001").click()
    details = page.get_by_role("region", name="arith-000001")
    await expect(details).to_contain_text(
        f"you may not. It takes update on checkpointheads {model}"
    )
    await expect(details.get_by_role("button")).to_have_count(0)
    stored(apiserver, model, labels={"kustomize.toolkit.fluxcd.io/name": "team"})
    gateway.world.head(model, "sha256:" + "3" * 64, step=2, term=2, checkpoint="arith-b2-000002")
    await details.get_by_text("the commit to make").click()
    await expect(details).to_contain_text("Git owns the head through Flux (team)")
    await expect(details).to_contain_text("checkpointRef: {name: arith-000001}")
    assert await visit.violations() == []


async def test_a_model_that_one_may_not_get_is_refused_with_the_right_that_is_missing(
    visit: Visit, gateway: Gateway
) -> None:
    model = tree(gateway.world)
    await visit.sign_in(gateway.users.stranger)
    await expect(visit.page.get_by_text("may get no model here")).to_be_visible()
    await visit.page.goto(f"{visit.url}#/{model}/tree")
    refused = visit.page.get_by_role("alert")
    await expect(refused).to_contain_text("may not get trainablemodels")
    await expect(refused).to_contain_text("Grant verb get on trainablemodels")


async def test_curves_have_a_line_for_each_branch_and_their_values_as_a_table(
    visit: Visit, gateway: Gateway, lookers: dict[str, str]
) -> None:
    page, model = visit.page, tree(gateway.world)
    gateway.world.run(model, "arith-run")
    await visit.sign_in(lookers["looker"])
    await page.get_by_role("link", name=str(model)).click()
    await go(page, "Curves")
    drawn = page.get_by_role("img", name="reward/mean over steps: main · arith-run")
    await expect(drawn.locator("canvas")).to_be_visible()
    await page.get_by_label("Metric").select_option("eval/held-out/mean_reward")
    await page.get_by_text("Values as a table").click()
    await expect(page.get_by_role("cell", name="0.5 (0.4 to 0.6)").first).to_be_visible()
    await page.get_by_label("Smoothing").fill("0.5")
    await expect(page.get_by_role("img", name="eval/held-out/mean_reward")).to_be_visible()
    await go(page, "Runs")
    await expect(page.get_by_role("region", name="arith-run")).to_contain_text("arith-run")
    assert await visit.violations() == []


async def test_what_models_and_tasks_write_is_text_in_rollouts_and_in_answers(
    visit: Visit, gateway: Gateway, lookers: dict[str, str], upstream: Any, axe: Checked
) -> None:
    page, model = visit.page, tree(gateway.world)
    pod = await upstream(sampler)
    gateway.world.pod(model, "rollout", ip="127.0.0.1", port=pod.port)
    await visit.sign_in(lookers["looker"])
    await page.goto(f"{visit.url}#/{model}/rollouts/arith-000002")
    group = page.get_by_role("region", name="7 + 5")
    await expect(group.get_by_role("article")).to_have_count(2)
    first = group.get_by_role("article").first
    await expect(first.locator(".tokens .p0")).to_have_text("the")
    await expect(first.locator(".tokens .p4")).to_have_text(" 12")
    await expect(first).to_contain_text("exact1")
    await first.get_by_text("changes since arith-000001").click()
    await expect(first.locator("del")).to_have_text("11")
    await group.get_by_text("prompt").click()
    await expect(group).to_contain_text("assistant calls tools")
    await expect(group.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    await expect(group.locator(".control").first).to_have_text("U+202E")
    assert await axe(page) == []
    await page.goto(f"{visit.url}#/{model}/compare/arith-000001/arith-000002")
    await page.get_by_label("Prompt").fill("7 + 5 =")
    await page.get_by_role("button", name="Ask both").click()
    answers = page.get_by_role("article")
    await expect(answers.first).to_contain_text("twelve")
    await expect(answers.last).to_contain_text("<script>alert(1)</script>")
    assert await page.locator("img, #app script, iframe").count() == 0
    assert await visit.violations() == []


async def test_the_keyboard_alone_reaches_a_checkpoint_and_its_rollouts(
    visit: Visit, gateway: Gateway, lookers: dict[str, str]
) -> None:
    page, model = visit.page, tree(gateway.world)
    await page.goto(visit.url)
    await expect(page.get_by_label("Token")).to_be_focused()
    await page.keyboard.type(lookers["looker"])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name=str(model))).to_be_visible()
    await _tab_to(page, str(model))
    await page.keyboard.press("Enter")
    chosen = page.locator("[aria-selected=true]")
    await expect(page.get_by_role("listbox")).to_be_visible()
    await _tab_to(page, "Checkpoints")
    for key, name in (
        ("End", "arith-b2-000002"),
        ("ArrowLeft", "arith-000001"),
        ("ArrowRight", "arith-000002"),
        ("ArrowDown", "arith-b2-000002"),
        ("ArrowUp", "arith-000002"),
    ):
        await page.keyboard.press(key)
        await expect(chosen).to_have_attribute("id", f"node-{name}")
    await _tab_to(page, "Rollouts of its step")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Rollouts of")).to_have_value("arith-000002")


async def _tab_to(page: Page, name: str) -> None:
    """Presses Tab until what is focused has a name that begins so."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        focused = "document.activeElement.ariaLabel || document.activeElement.textContent"
        if str(await page.evaluate(focused)).startswith(name):
            return
    raise AssertionError(f"Tab does not come to {name}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_to_stumble_over(
    scheme: Any, visit: Visit, gateway: Gateway, lookers: dict[str, str], axe: Checked
) -> None:
    page, model = visit.page, tree(gateway.world)
    gateway.world.run(model, "arith-run")
    await page.emulate_media(color_scheme=scheme)
    await page.goto(visit.url)
    found = await axe(page)
    await visit.sign_in(lookers["mover"])
    await expect(page.get_by_role("link", name=str(model))).to_be_visible()
    found += await axe(page)
    for view in ("tree/arith-000001", "curves", "rollouts/arith-000002", "runs", "compare"):
        await page.goto(f"{visit.url}#/{model}/{view}")
        await expect(page.locator("nav [aria-current]")).to_be_visible()
        await expect(page.get_by_role("status").first).to_have_text("live")
        found += await axe(page)
    assert found == []
