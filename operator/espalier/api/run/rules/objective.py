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

_COMPARES_WITH_ITSELF = (
    "has({run}.loss) && {run}.loss.ratioAnchor == 'Trainer' && has({run}.schedule)"
    " && has({run}.schedule.maxStalenessSteps) && {run}.schedule.maxStalenessSteps == 0"
)
_IDLE_KL = (
    "{run}.driver == 'Runner' && has({run}.kl) && !has({run}.kl.reference)"
    " && double({run}.kl.coefficient) == 0.0"
)


def later_objective() -> list[dict[str, Any]]:
    """Rules that came after runs did."""
    return [
        _cross_entropy_reads_no_advantages(),
        newly(
            "self.driver != 'Runner' || !has(self.loss) || self.loss.name != 'cross_entropy'",
            "cross_entropy reads no rewards, and driver Runner has nothing else to learn from: "
            "choose another loss, such as importance_sampling, or set driver: Client and train on "
            "texts with a script",
            ".loss.name",
            unless="has(before.loss) && before.loss.name == 'cross_entropy'",
        ),
        newly(
            "!has(self.loss) || !has(self.loss.clipHigh) || double(self.loss.clipHigh) >= 1.0",
            "clipHigh is a ratio of 1 or more, not an epsilon: for an epsilon of 0.2 give "
            'clipHigh: "1.2"',
            ".loss.clipHigh",
            unless="has(before.loss) && before.loss == self.loss",
        ),
        newly(
            "!has(self.loss) || !has(self.loss.clipLow) || double(self.loss.clipLow) <= 1.0",
            'clipLow is a ratio of 1 or less: for an epsilon of 0.2 give clipLow: "0.8"',
            ".loss.clipLow",
            unless="has(before.loss) && before.loss == self.loss",
        ),
        newly(
            f"!({_COMPARES_WITH_ITSELF.format(run='self')})",
            "under schedule.maxStalenessSteps 0 each batch is trained once, by the policy that "
            "sampled it, so ratioAnchor Trainer compares it with itself: set schedule.mode: "
            "Synchronous with batch.epochs, raise maxStalenessSteps, or remove ratioAnchor",
            ".loss.ratioAnchor",
            unless=_COMPARES_WITH_ITSELF.format(run="before"),
        ),
        newly(
            f"!({_IDLE_KL.format(run='self')})",
            "kl without a reference does nothing: give reference: {base: {}} and a coefficient, "
            "or remove kl",
            ".kl",
            unless=_IDLE_KL.format(run="before"),
        ),
    ]


def _cross_entropy_reads_no_advantages() -> dict[str, Any]:
    """Of advantage, which came after runs did."""
    return newly(
        "!has(self.loss) || self.loss.name != 'cross_entropy' || !has(self.advantage)"
        " || (self.advantage.estimator == 'GroupMean' && self.advantage.scale == 'None')",
        "cross_entropy reads no advantages: remove advantage, or choose another loss",
        ".advantage",
        unless="has(before.advantage) && before.advantage == self.advantage",
    )
