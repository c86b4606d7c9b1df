"""reasoning_gym, imported without matplotlib: half of its import, for plots that nobody asks for.

``import reasoning_gym`` itself costs every runner and every scorer that second.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# What cellpylib imports, with the names that it takes from it: reasoning_gym needs cellpylib for
# cellular automata, and not for their plots.
_PLOTTING: dict[str, tuple[str, ...]] = {
    "matplotlib": (),
    "matplotlib.animation": (),
    "matplotlib.collections": (),
    "matplotlib.pyplot": (),
    "mpl_toolkits": (),
    "mpl_toolkits.mplot3d": ("Axes3D",),
}


@contextmanager
def _without_plots() -> Iterator[None]:
    """Puts empty modules in the place of those that are not imported yet, and takes them away.

    Whoever imports matplotlib afterwards gets the real one.
    """
    empty = {name: ModuleType(name) for name in _PLOTTING if name not in sys.modules}
    for name, module in empty.items():
        vars(module).update(dict.fromkeys(_PLOTTING[name]))
        parent, _, child = name.rpartition(".")
        if parent in empty:
            setattr(empty[parent], child, module)
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]


with _without_plots():
    import reasoning_gym as gym
    from reasoning_gym.factory import DATASETS

__all__ = ["DATASETS", "gym"]
