"""The shapes of trained weights by name, and the difference between two sets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

_SHOWN = 3


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shape of every weight."""
    return {name: tuple(value.shape) for name, value in state.items()}


def difference(given: Shapes, wanted: Shapes) -> str:
    """Describes how shapes differ from the wanted ones; empty if they do not."""
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    shaped = [
        f"{name} is {list(given[name])}, must be {list(wanted[name])}"
        for name in sorted(set(given) & set(wanted))
        if tuple(given[name]) != tuple(wanted[name])
    ]
    groups = (("lacks ", missing), ("has besides ", extra), ("", shaped))
    return "; ".join(prefix + some(names) for prefix, names in groups if names)


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
