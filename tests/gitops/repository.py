"""A team's Git repository: bare, as Argo CD reads it, and a working tree to commit from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/gitops/model"
BRANCH = "main"
AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A team"), ("EMAIL", "team@example.com"))
}


class Repository:
    """Starts with examples/gitops/model, each file as it is shipped."""

    def __init__(self, directory: Path) -> None:
        self.bare = directory / "models.git"
        self.tree = directory / "models"
        self.environment = {**os.environ, **AUTHOR, "GIT_CONFIG_GLOBAL": os.devnull}
        directory.mkdir(parents=True, exist_ok=True)
        self._run("git", "init", "-q", "--bare", "-b", BRANCH, str(self.bare))
        self._run("git", "clone", "-q", str(self.bare), str(self.tree))
        self.git("switch", "-q", "-C", BRANCH)
        shutil.copytree(EXAMPLE, self.tree / "model")
        self.commit("Declare a model, its head and a run")

    @property
    def url(self) -> str:
        return f"file://{self.bare}"

    def git(self, *arguments: str) -> str:
        return self._run("git", "-C", str(self.tree), *arguments).strip()

    def commit(self, message: str) -> str:
        """Commits and pushes whatever was changed; its hash."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.push()

    def push(self) -> str:
        self.git("push", "-q", "origin", BRANCH)
        return self.git("rev-parse", "HEAD")

    def edit(self, file: str, **spec: object) -> None:
        """Sets fields of an object's spec; None removes one."""
        path = self.tree / "model" / file
        body = yaml.safe_load(path.read_text())
        for name, value in spec.items():
            if value is None:
                body["spec"].pop(name, None)
            else:
                body["spec"][name] = value
        path.write_text(yaml.safe_dump(body, sort_keys=False))

    def pin(self, checkpoint: str, **spec: object) -> str:
        self.edit("head.yaml", mode="Pin", checkpointRef={"name": checkpoint}, **spec)
        return self.commit(f"Pin arith to {checkpoint}")

    def remove(self, *files: str) -> str:
        self.git("rm", "-q", *(f"model/{file}" for file in files))
        return self.commit(f"Remove {', '.join(files)}")

    def revert(self) -> str:
        self.git("revert", "--no-edit", "HEAD")
        return self.push()

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env=self.environment, timeout=60
        )
        return done.stdout
