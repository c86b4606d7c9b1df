"""Runs in an image build: writes the package's metadata beside the code in /app.

Plug-ins are found by it: vLLM loads ours by the entry point `vllm.general_plugins`.
"""

import tomllib
from pathlib import Path

APP = Path("/app")

project = tomllib.loads((APP / "pyproject.toml").read_text())["project"]
info = APP / f"{project['name']}-{project['version']}.dist-info"
info.mkdir(mode=0o755)
lines = []
for group, entries in project["entry-points"].items():
    lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
(info / "entry_points.txt").write_text("\n".join(lines) + "\n")
(info / "METADATA").write_text(
    f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    f"License-Expression: {project['license']}\n"
)
for path in (APP / "pyproject.toml", APP / "metadata.py"):
    path.unlink()
