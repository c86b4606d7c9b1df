"""Commands that read what an ``espalier dev`` keeps, where there is no cluster and no kubectl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.checkpoints import manifests
from tests.cli.test_cluster_commands import condition, model, training_run
from tests.cli.test_verbs import BRANCHES, head, served
from typer.testing import CliRunner, Result

from espalier.cli.main import app
from espalier.core.volume import checkpoints_of, directory_name
from espalier.local.layout import Layout


class Commands:
    """The command line over a state directory."""

    def __init__(self, state: Path) -> None:
        self.layout = Layout(state, {})

    def __call__(self, *arguments: str) -> Result:
        environment = {"ESPALIER_LOCAL": str(self.layout.root), "PATH": "/nothing"}
        return CliRunner().invoke(app, arguments, env=environment)

    def refused(self, *arguments: str) -> str:
        """What a command says that is wrong here."""
        done = self(*arguments)
        assert done.exit_code == 2, done.output
        return done.output


def kept(body: dict[str, Any]) -> dict[str, Any]:
    metadata = {"namespace": "default", "generation": 1, **body["metadata"]}
    return {**body, "metadata": metadata}


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """Two branches, a head and a run that has ended."""
    tree = {"checkpoints": 5, "branches": BRANCHES}
    objects = [
        model(tree=tree, conditions=[condition("Ready", "Ready")]),
        head(**served("arith-b2-000003")),
        training_run(),
        *manifests(),
        {"kind": "ConfigMap", "metadata": {"name": "sums"}, "data": {"tasks.jsonl": "{}"}},
    ]
    layout = Layout(tmp_path / "state", {})
    layout.root.mkdir()
    layout.objects.write_text(json.dumps([kept(body) for body in objects]))
    return Commands(layout.root)


def test_the_tree_is_drawn(commands: Commands) -> None:
    lines = commands("tree", "arith").output.splitlines()
    assert lines[0].split() == ["*", "arith-000003", "0.500"]
    assert "| * arith-b2-000003   0.750  > arith" in lines
    assert lines[-1] == "> arith: arith-b2-000003 (Track, advanced 2026-01-02T00:00:00Z)"


def test_the_curve_and_the_models_are_shown(commands: Commands) -> None:
    assert "reward/mean of arith" in commands("curve", "arith").output
    assert commands("models", "list", "-q").output == "arith\n"
    assert commands("run", "why", "run").exit_code == 0


def test_a_name_that_is_not_there_brings_the_nearest(commands: Commands) -> None:
    said = commands.refused("checkpoint", "show", "arith-00003")
    assert "Did you mean" in said
    assert "arith-000003" in said


def test_rollouts_are_read_from_where_a_version_before_has_left_them(commands: Commands) -> None:
    digest = manifests()[0]["spec"]["digest"]
    place = commands.layout.volume("weights") / "checkpoints" / digest.replace(":", "-")
    assert "cannot read" in commands("rollouts", "show", "arith-000001").output
    place.mkdir(parents=True)
    row = {"reward": 1.0, "prompt": [{"content": "1 + 1?"}], "completion": "2"}
    (place / "rollouts.jsonl").write_text(json.dumps(row))
    assert "+1.000  1 + 1?" in commands("rollouts", "show", "arith-000001").output


def keep(commands: Commands, number: int, *rows: dict[str, Any]) -> None:
    """Lays rollouts beside a checkpoint of the tree, by its number."""
    spec = manifests()[number]["spec"]
    folder = checkpoints_of(commands.layout.volume("weights"), spec["modelRef"]["name"])
    place = folder / directory_name(spec["digest"])
    place.mkdir(parents=True, exist_ok=True)
    (place / "rollouts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_rollouts_are_read_through_no_link(commands: Commands, tmp_path: Path) -> None:
    keep(commands, 0, {"reward": 1.0, "prompt": [{"content": "1 + 1?"}], "completion": "2"})
    assert "1 + 1?" in commands("rollouts", "show", "arith-000001").output
    (kept_file,) = commands.layout.volume("weights").rglob("rollouts.jsonl")
    kept_file.rename(tmp_path / "elsewhere")
    kept_file.symlink_to(tmp_path / "elsewhere")
    assert "cannot read" in commands("rollouts", "show", "arith-000001").output


ROW = {"task": "sums/0", "prompt": [{"role": "user", "content": "1 + 1?"}], "reward": 1.0}


def test_rollouts_are_written_as_a_page_beside_the_parents_answers(
    commands: Commands, tmp_path: Path
) -> None:
    keep(commands, 0, ROW | {"completion": "It is 3"})
    # A lone half of a character is no text that a file takes.
    keep(commands, 1, ROW | {"completion": "It is 2"}, ROW | {"completion": "<b>\ud800"})
    file = tmp_path / "page.html"
    done = commands("rollouts", "show", "arith-000002", "--html", str(file))
    assert (
        done.output == f"wrote 2 rollouts of arith-000002 to {file}, compared with arith-000001\n"
    )
    page = file.read_text()
    assert "It is <del>3</del><ins>2</ins>" in page
    assert "&lt;b&gt;" in page and "<b>\ud800" not in page
    assert "step 2 · of arith · branch main" in page


def test_a_page_compares_with_the_checkpoint_that_is_named(
    commands: Commands, tmp_path: Path
) -> None:
    keep(commands, 2, ROW | {"completion": "It is 2"})
    file = tmp_path / "page.html"
    show = ("rollouts", "show", "arith-000003")
    # The parent keeps none, which is no failure; a checkpoint that was asked for is.
    assert "compared" not in commands(*show, "--html", str(file)).output
    assert "cannot read" in commands(*show, "--html", str(file), "--against", "arith-000001").output
    keep(commands, 0, ROW | {"completion": "It is 9"})
    commands(*show, "--html", str(file), "--against", "arith-000001")
    assert "changes since arith-000001" in file.read_text()
    assert "Give --html" in commands(*show, "--against", "arith-000001").output
    missing = str(tmp_path / "no" / "page.html")
    assert "cannot write" in commands(*show, "--html", missing).output


@pytest.mark.parametrize(
    "edit",
    [
        ("models", "head", "arith", "--set", "arith-000001", "--yes"),
        ("models", "fork", "arith", "--name", "other", "--yes"),
        ("run", "suspend", "run", "--yes"),
    ],
    ids=lambda edit: " ".join(edit[:2]),
)
def test_an_edit_is_refused_and_says_where_to_make_it(
    commands: Commands, edit: tuple[str, ...]
) -> None:
    before = commands.layout.objects.read_text()
    assert "Edit a file in its directory of manifests" in commands.refused(*edit)
    assert commands.layout.objects.read_text() == before


def test_logs_are_refused_and_where_they_lie_is_said(commands: Commands) -> None:
    said = commands.refused("run", "logs", "run")
    assert str(commands.layout.root / "logs") in said.replace("\n", "")


def test_nothing_is_waited_for_that_nobody_can_bring(commands: Commands) -> None:
    done = commands("watch", "run")
    assert done.exit_code == 1
    assert "no espalier dev runs over" in done.output
    with commands.layout.claimed():
        assert "has not ended within 0 s" in commands("watch", "run", "--timeout", "0").output


def test_what_has_ended_already_is_not_waited_for(commands: Commands) -> None:
    ended = training_run(condition("Succeeded", "Succeeded"))
    commands.layout.objects.write_text(json.dumps([kept(ended)]))
    assert commands("watch", "run").exit_code == 0


def test_another_namespace_and_a_directory_that_is_no_state_are_refused(
    commands: Commands, tmp_path: Path
) -> None:
    assert "only default" in commands.refused("-n", "team", "tree", "arith")
    said = Commands(tmp_path).refused("tree", "arith")
    assert "--local takes the directory that espalier dev printed" in said


def test_espalier_dev_itself_takes_no_local(commands: Commands, tmp_path: Path) -> None:
    said = commands.refused("--local", str(tmp_path), "dev", str(tmp_path))
    assert "espalier dev takes --state" in said
