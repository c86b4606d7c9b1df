"""espalier promote, on real repositories; one test goes through kubectl and an API server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from dev.apiserver import BINARIES, ApiServer
from tests.cli.test_cluster_commands import apply
from tests.core.test_promotion import checkpoint
from typer.testing import CliRunner

from espalier.api.checkpoint import Checkpoint
from espalier.cli.failure import CliError
from espalier.cli.git import WorkingTree
from espalier.cli.head_manifest import heads
from espalier.cli.main import app
from espalier.cli.promote import Wish, promote

FILE = Path("prod/head.yaml")
HEAD = """\
# What the slug serves.
apiVersion: espalier.dev/v1alpha1
kind: CheckpointHead
metadata:
  name: arith
spec:
  modelRef:
    name: arith
  mode: Track
  gate:
    metric: reward/mean
    min: "0.5"
"""


def git(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", path, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


class Known:
    """The Checkpoints of a cluster; ``before`` is called at each look."""

    def __init__(self, *known: Checkpoint, before: Callable[[], object] = lambda: None) -> None:
        self.known = {one.metadata.name: one for one in known}
        self.before = before

    def checkpoint(self, name: str) -> Checkpoint:
        return self.known[name]

    def checkpoints(self, model: str) -> Sequence[Checkpoint]:
        self.before()
        return list(self.known.values())


KNOWN = Known(checkpoint(1, "0.6"), checkpoint(2, "0.7"), checkpoint(3, "0.4"))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A remote repository with one head; the commits of this test have an author."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Promoter")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "promoter@example.com")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    made = tmp_path / "team.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", made], check=True)
    first = clone(made, "first")
    git(first, "switch", "-q", "-C", "main")
    save(first, HEAD)
    git(first, "push", "-q", "-u", "origin", "main")
    return made


@pytest.fixture
def clone_of_bare(bare: Path) -> Path:
    return clone(bare, "mine")


def clone(bare: Path, name: str) -> Path:
    made = bare.parent / name
    subprocess.run(["git", "clone", "-q", bare, made], check=True, capture_output=True)
    return made


def save(tree: Path, text: str, file: Path = FILE) -> None:
    (tree / file).parent.mkdir(exist_ok=True)
    (tree / file).write_text(text)
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", f"Write {file}")


def pin(tree: Path, revision: str = "HEAD") -> str:
    (found,) = heads(git(tree, "show", f"{revision}:{FILE}"))
    return found.pin


def run(tree: Path, known: Known = KNOWN, wish: Wish = Wish(), *, push: bool = False) -> str:  # noqa: B008
    return promote(WorkingTree(tree), lambda _: known, wish, push=push).commit


def test_the_newest_checkpoint_that_passes_is_pinned_by_one_commit(clone_of_bare: Path) -> None:
    commit = run(clone_of_bare)
    assert pin(clone_of_bare, commit) == "arith-1-2"
    message = git(clone_of_bare, "log", "-1", "--format=%B")
    assert message.splitlines()[0] == "Pin arith to arith-1-2"
    assert "reward/mean 0.7 passes the gate of 0.5; the head was tracking before." in message
    assert "Model: arith" in message
    assert f"Digest: sha256:{2:064x}" in message
    assert git(clone_of_bare, "show", "--stat", "--format=").count("|") == 1
    assert git(clone_of_bare, "log", "origin/main..", "--oneline").count("\n") == 0


def test_again_it_commits_nothing(clone_of_bare: Path) -> None:
    run(clone_of_bare)
    before = git(clone_of_bare, "rev-parse", "HEAD")
    assert run(clone_of_bare) == ""
    assert git(clone_of_bare, "rev-parse", "HEAD") == before


def test_a_commit_that_was_not_pushed_is_pushed_the_next_time(
    bare: Path, clone_of_bare: Path
) -> None:
    run(clone_of_bare)
    assert pin(bare, "main") == ""
    assert run(clone_of_bare, push=True) == ""
    assert pin(bare, "main") == "arith-1-2"


def test_what_else_is_edited_or_staged_stays_as_it_is(clone_of_bare: Path) -> None:
    (clone_of_bare / "notes").write_text("staged")
    git(clone_of_bare, "add", "notes")
    run(clone_of_bare)
    assert git(clone_of_bare, "status", "--porcelain") == "A  notes"


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(checkpoint="arith-1-3"), "arith: arith-1-3 has reward/mean 0.4; the gate asks"),
        (Wish(head="canary"), "no CheckpointHead canary in the YAML files of"),
        (Wish(path=Path("absent.yaml")), "absent.yaml is not in"),
    ],
)
def test_a_refusal_leaves_the_repository_alone(clone_of_bare: Path, wish: Wish, why: str) -> None:
    before = git(clone_of_bare, "rev-parse", "HEAD")
    with pytest.raises(CliError, match=why):
        run(clone_of_bare, wish=wish)
    assert git(clone_of_bare, "rev-parse", "HEAD") == before
    assert git(clone_of_bare, "status", "--porcelain") == ""


def test_a_file_with_edits_is_refused(clone_of_bare: Path) -> None:
    with (clone_of_bare / FILE).open("a") as file:
        file.write("# mine\n")
    with pytest.raises(CliError, match=r"head\.yaml has changes that are not committed"):
        run(clone_of_bare)


def test_one_of_two_heads_must_be_chosen(clone_of_bare: Path) -> None:
    canary = Path("canary.yaml")
    save(clone_of_bare, HEAD.replace("name: arith", "name: canary", 1), canary)
    save(clone_of_bare, "{{- if .Values.templated }}", Path("template.yaml"))
    with pytest.raises(CliError, match=r"several: canary in canary\.yaml, arith in prod/"):
        run(clone_of_bare)
    assert run(clone_of_bare, wish=Wish(head="canary"))
    assert run(clone_of_bare, wish=Wish(path=FILE))


def test_a_refused_commit_leaves_the_file_as_it_was(clone_of_bare: Path) -> None:
    hook = clone_of_bare / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho not on Fridays >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(CliError, match="not on Fridays"):
        run(clone_of_bare)
    assert (clone_of_bare / FILE).read_text() == HEAD


def test_a_push_that_came_second_is_put_on_top_of_the_first(
    bare: Path, clone_of_bare: Path
) -> None:
    other = clone(bare, "other")
    moves = iter(range(2))

    def push_notes() -> None:
        if (number := next(moves, None)) is not None:
            save(other, "text", Path(f"notes{number}"))
            git(other, "push", "-q")

    (clone_of_bare / "mine").write_text("not committed")
    run(clone_of_bare, Known(*KNOWN.known.values(), before=push_notes), push=True)
    log = git(bare, "log", "--format=%s", "main").splitlines()
    assert log[:3] == ["Pin arith to arith-1-2", "Write notes1", "Write notes0"]
    assert (clone_of_bare / "mine").read_text() == "not committed"


def test_the_pin_of_someone_else_is_not_overwritten(bare: Path, clone_of_bare: Path) -> None:
    other = clone(bare, "other")

    def pin_another() -> None:
        if not pin(other):
            run(other, wish=Wish(checkpoint="arith-1-1"), push=True)

    with pytest.raises(CliError, match="meanwhile arith was pinned to arith-1-1"):
        run(clone_of_bare, Known(*KNOWN.known.values(), before=pin_another), push=True)
    assert pin(bare, "main") == "arith-1-1"
    assert git(clone_of_bare, "rev-parse", "HEAD") == git(bare, "rev-parse", "main")


def test_the_gate_of_the_newest_commit_counts(bare: Path, clone_of_bare: Path) -> None:
    other = clone(bare, "other")

    def raise_gate() -> None:
        if '"0.5"' in (other / FILE).read_text():
            save(other, HEAD.replace('"0.5"', '"0.9"'))
            git(other, "push", "-q")

    with pytest.raises(CliError, match=r"reaches reward/mean 0\.9"):
        run(clone_of_bare, Known(*KNOWN.known.values(), before=raise_gate), push=True)
    assert pin(bare, "main") == ""


def test_a_branch_that_never_rests_is_given_up(bare: Path, clone_of_bare: Path) -> None:
    other = clone(bare, "other")
    count = iter(range(100))

    def always() -> None:
        save(other, "text", Path(f"notes{next(count)}"))
        git(other, "push", "-q")

    with pytest.raises(CliError, match="origin/main moved 5 times"):
        run(clone_of_bare, Known(*KNOWN.known.values(), before=always), push=True)
    assert pin(clone_of_bare) == ""


def test_a_branch_without_upstream_says_how_to_set_one(clone_of_bare: Path) -> None:
    git(clone_of_bare, "switch", "-q", "-c", "local")
    with pytest.raises(CliError, match="--set-upstream-to=origin/local"):
        run(clone_of_bare, push=True)


def test_the_command_reads_checkpoints_from_the_cluster(
    apiserver: ApiServer, namespace: str, clone_of_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig))
    monkeypatch.setenv("PATH", f"{BINARIES}:{os.environ['PATH']}")
    for one in KNOWN.known.values():
        body = one.model_dump(mode="json", by_alias=True, exclude_none=True)
        body["metadata"] = {
            "name": one.metadata.name,
            "labels": {"espalier.dev/model": "arith"},
        }
        status = {"observedGeneration": 1, **body["status"]}
        kind = {"apiVersion": "espalier.dev/v1alpha1", "kind": "Checkpoint"}
        apply(apiserver, namespace, {**kind, **body, "status": status})
    command = ["-n", namespace, "promote", "--git", str(clone_of_bare), "--push"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "pinned arith in prod/head.yaml to arith-1-2: commit " in done.output
    assert "already" in CliRunner().invoke(app, command).output
    assert pin(clone_of_bare, "origin/main") == "arith-1-2"
    refused = CliRunner().invoke(app, [*command, "--checkpoint", "arith-1-3"])
    assert refused.exit_code == 1
    assert "the gate asks for 0.5" in refused.output
