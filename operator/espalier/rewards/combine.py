"""From the parts of the completions of a group to their rewards and advantages. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from espalier.api.run.rewards import Aggregation
from espalier.core import advantages as core
from espalier.rewards.scored import Scored


def weighted(parts: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """The sum of the parts by weight; None where a part is missing."""
    if any(name not in parts for name in weights):
        return None
    return sum(weight * parts[name] for name, weight in weights.items())


def normalized(values: Sequence[float]) -> list[float]:
    """Values of one group, brought to mean 0 and, where they differ, to deviation 1.

    The deviation is the population's.
    """
    (found,) = core.advantages([values], "GroupMean", "GroupStd")
    return found


def advantages(
    parts: Sequence[Mapping[str, float]], weights: Mapping[str, float]
) -> list[float] | None:
    """The advantage of each completion of a group by GDPO (arXiv 2601.05242).

    Each reward is normalized on its own and then summed by weight, so that one whose values lie
    far apart does not hide the others. GDPO's further division by the batch is left out: Adam
    does not feel a common factor. None where a completion lacks a part.
    """
    if any(weighted(one, weights) is None for one in parts):
        return None
    found = [0.0] * len(parts)
    for name, weight in weights.items():
        for place, value in enumerate(normalized([one[name] for one in parts])):
            found[place] += weight * value
    return found


def with_advantages(
    group: Sequence[Scored], weights: Mapping[str, float], aggregation: Aggregation
) -> list[Scored]:
    """The completions of a group with the advantages that the aggregation gives; as they are under
    SumThenNormalize, which the trainer carries out.
    """
    if aggregation == "SumThenNormalize":
        return list(group)
    given = advantages([one.parts for one in group], weights)
    if given is None:
        return list(group)
    return [
        replace(one, advantage=0.0 if one.masked else value)
        for one, value in zip(group, given, strict=True)
    ]
