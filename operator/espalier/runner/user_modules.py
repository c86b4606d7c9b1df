"""The user's modules, of rewards and of a loss: ConfigMaps that are mounted in the runner's pod."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from espalier.rewards.module import ModuleError

MODULES_DIRECTORY = Path("/etc/espalier/modules")
# Of the text of a module; a ConfigMap holds no more.
MODULE_BYTES = 1 << 20


def mounted_modules(directory: Path = MODULES_DIRECTORY) -> Callable[[str, str], str]:
    """Reads modules by ConfigMap and key; ModuleError for one that cannot be read."""

    def read(name: str, key: str) -> str:
        try:
            with (directory / name / key).open("rb") as file:
                content = file.read(MODULE_BYTES + 1)
            if len(content) > MODULE_BYTES:
                raise ValueError(f"it has more than {MODULE_BYTES} bytes")
            return content.decode()
        except (OSError, ValueError) as error:
            raise ModuleError(f"cannot be read: {error}") from error

    return read
