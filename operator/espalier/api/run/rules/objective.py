"""Rules of loss, advantage, correction and KL."""

from __future__ import annotations

from typing import Any

from espalier.api.meta import Rule, newly

OBJECTIVE: tuple[Rule, ...] = (
    (
        "!has(self.loss) || !has(oldSelf.loss) || self.loss.name == oldSelf.loss.name",
        "loss.name is immutable: create another run",
        ".loss.name",
    ),
    (
        "!has(self.groupSize) || self.groupSize >= 2 || (has(self.advantage)"
        " ? self.advantage.source != 'Estimated' || self.advantage.estimator == 'None'"
        " : self.driver == 'Client')",
        "advantage.source Estimated needs groupSize of 2 or more, or every advantage is 0; "
        "or take the reward itself with advantage.estimator None",
        ".groupSize",
    ),
    (
        "!has(self.loss) || !has(self.offPolicyCorrection)"
        " || self.loss.ratioAnchor == 'Trainer'"
        " || !self.offPolicyCorrection.mode.endsWith('Truncate')",
        "with loss.ratioAnchor Sampler the loss applies the whole weight, and a Truncate "
        "would do so twice: choose a Mask, or set loss.ratioAnchor: Trainer",
        ".offPolicyCorrection.mode",
    ),
    (
        "!has(self.loss) || self.loss.name != 'cross_entropy'"
        " || !has(self.offPolicyCorrection) || self.offPolicyCorrection.mode == 'None'",
        "cross_entropy compares with no log-probs: remove offPolicyCorrection or choose "
        "another loss",
        ".offPolicyCorrection",
    ),
    (
        "!has(self.loss) || self.loss.name != 'cross_entropy' || !has(self.kl)"
        " || !has(self.kl.reference) || self.kl.placement == 'Loss'",
        "cross_entropy reads no advantages: set kl.placement: Loss, or choose another loss",
        ".kl.placement",
    ),
    (
        "self.driver != 'Runner' || !has(self.advantage) || self.advantage.source == 'Estimated'",
        "advantage.source Precomputed needs driver Client: no taskset gives advantages, "
        "so leave it Estimated or let a script train",
        ".advantage",
    ),
)


def cross_entropy_reads_no_advantages() -> dict[str, Any]:
    """Of advantage, which came after runs did."""
    return newly(
        "!has(self.loss) || self.loss.name != 'cross_entropy' || !has(self.advantage)"
        " || (self.advantage.estimator == 'GroupMean' && self.advantage.scale == 'None')",
        "cross_entropy reads no advantages: remove advantage, or choose another loss",
        ".advantage",
        unless="has(before.advantage) && before.advantage == self.advantage",
    )
