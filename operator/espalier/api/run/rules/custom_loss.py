"""Rules of what has no meaning beside a loss that the user wrote."""

from __future__ import annotations

from espalier.api.meta import Rule

_BUILT_IN = "!has(self.loss) || self.loss.name != 'Custom'"

CUSTOM_LOSS: tuple[Rule, ...] = (
    (
        "!has(self.timeouts) || !has(self.timeouts.lossSeconds)"
        " || (has(self.loss) && self.loss.name == 'Custom')",
        "timeouts.lossSeconds belongs to loss Custom: remove it",
        ".timeouts.lossSeconds",
    ),
    (
        f"{_BUILT_IN} || self.driver == 'Runner'",
        "loss Custom belongs to driver Runner: remove loss, and let the client's script "
        "call forward_backward_custom",
        ".loss",
    ),
    (
        f"{_BUILT_IN} || !has(self.offPolicyCorrection) || self.offPolicyCorrection.mode == 'None'",
        "the function of loss Custom gets the sampler's log-probs and corrects by them "
        "itself: remove offPolicyCorrection",
        ".offPolicyCorrection",
    ),
    (
        f"{_BUILT_IN} || !has(self.kl) || (double(self.kl.coefficient) == 0.0"
        " && double(self.kl.discount) == 0.0 && !has(self.kl.estimator))",
        "the function of loss Custom gets reference_logprobs and weighs them itself: leave "
        "reference alone in kl",
        ".kl",
    ),
    (
        f"{_BUILT_IN} || !has(self.schedule) || self.schedule.mode != 'Streaming'",
        "loss Custom is of a whole step, and schedule.mode Streaming adds gradients before "
        "all of it is there: choose another mode",
        ".schedule",
    ),
)
