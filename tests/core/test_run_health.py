"""What a run's conditions say of its latest step: rewards that teach, log-probs that agree."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.objects import NOW, checkpoint, condition, digest, model, run
from tests.core.run_views import said, view

from espalier.core.conditions import find
from espalier.core.run import run as runs
from espalier.core.run.run import RunDecision


@pytest.mark.parametrize(
    ("metrics", "rewards", "logprobs"),
    [
        ({}, "Unknown/NotMeasured", "Unknown/NotMeasured"),
        (
            {"group/zero_variance_fraction": "0.2", "logprob/difference_mean": "1e-5"},
            "True/RewardsVary",
            "True/Aligned",
        ),
        (
            {"group/zero_variance_fraction": "1", "logprob/difference_mean": "0.2"},
            "False/ZeroVarianceGroups",
            "False/Diverged",
        ),
    ],
)
def test_the_health_of_a_step_is_told_from_its_metrics(
    metrics: dict[str, str], rewards: str, logprobs: str
) -> None:
    shown = [{"name": name, "value": value} for name, value in metrics.items()]
    decision = runs.decide(view(run=run(status={"metrics": shown})), NOW)
    assert said(decision, "RewardsInformative") == rewards
    assert said(decision, "LogprobsAligned") == logprobs


def test_the_health_of_the_step_before_holds_until_the_next_one_is_measured() -> None:
    shown = [{"name": "group/zero_variance_fraction", "value": "0.88"}]
    unread = checkpoint(step=2, reward=None)
    before = run(status={"step": 1, "metrics": shown})
    decision = runs.decide(view(run=before, checkpoints=[unread]), NOW)
    assert decision.status.step == 2
    assert said(decision, "RewardsInformative") == "True/RewardsVary"
    found = find(decision.status.conditions, "RewardsInformative")
    assert found is not None
    assert found.message == "88% of the groups had equal rewards, limit 90%"


def test_rollouts_that_swap_full_weights_are_healthy_and_missing_ones_are_not() -> None:
    swapping = model(
        status={"conditions": [condition("RolloutsReady", "False", "Starting", message="0 of 1")]}
    )
    assert said(runs.decide(view(model=swapping), NOW), "RolloutsHealthy") == "True/PodsStarted"
    gone = runs.decide(view(model=swapping, rollouts=0), NOW)
    assert said(gone, "RolloutsHealthy") == "False/Starting"
    assert said(gone, "Ready") == "False/Starting"


@pytest.mark.parametrize(
    ("driver", "metrics", "reason", "said"),
    [
        ("Runner", {}, "Diverged", "report it"),
        ("Client", {}, "OtherPolicy", "of another checkpoint than the one trained"),
        (
            "Client",
            {"logprob/temperature_assumed_fraction": "0.25", "policy/ratio_max": "3"},
            "TemperatureUnknown",
            "25% of the tokens came without a temperature",
        ),
        # What a cut leaves is likelier, token by token.
        (
            "Client",
            {"logprob/temperature_assumed_fraction": "1", "policy/ratio_max": "0.99"},
            "DistributionShifted",
            "as with top_p",
        ),
    ],
)
def test_log_probs_that_differ_are_laid_to_what_is_known_of_their_cause(
    driver: str, metrics: dict[str, str], reason: str, said: str
) -> None:
    measured = {"logprob/difference_mean": "0.2", **metrics}
    shown = [{"name": name, "value": value} for name, value in measured.items()]
    driven = run(driver=driver, status={"metrics": shown})
    found = find(runs.decide(view(run=driven), NOW).status.conditions, "LogprobsAligned")
    assert found is not None
    assert (found.status, found.reason) == ("False", reason)
    assert said in found.message
    assert "differ by 0.2 on average, limit 0.001: " in found.message


def test_truncated_completions_are_named_as_the_cause_of_equal_rewards() -> None:
    shown = [
        {"name": "group/zero_variance_fraction", "value": "1"},
        {"name": "completion/truncated_fraction", "value": "0.9"},
    ]
    found = find(
        runs.decide(view(run=run(status={"metrics": shown})), NOW).status.conditions,
        "RewardsInformative",
    )
    assert found is not None
    assert "sampling.maxTokens" in found.message


@pytest.mark.parametrize(
    ("spec", "equal", "told"),
    [
        ({}, "1", "set sampling.stopTokenIds: [7]"),
        # Answers that are read before they are cut may be rewarded all the same.
        ({}, "0.2", "set sampling.stopTokenIds: [7]"),
        ({"sampling": {"stopTokenIds": [7]}}, "1", "raise sampling.maxTokens"),
        ({"sampling": {"stop": ["<|im_end|>"]}}, "1", "raise sampling.maxTokens"),
        # Its sampling is the client's own.
        ({"driver": "Client"}, "1", "sample with stop_token_ids [7]"),
    ],
)
def test_a_turns_end_that_stops_nothing_is_named_as_the_cause_of_cut_completions(
    spec: dict[str, Any], equal: str, told: str
) -> None:
    shown = [
        {"name": "group/zero_variance_fraction", "value": equal},
        {"name": "completion/truncated_fraction", "value": "0.9"},
    ]
    end = {"token": "<|im_end|>", "tokenId": 7}
    resolved = {"uri": "file:///b", "digest": digest("b"), "unstoppedTurnEnd": end}
    subject = run(status={"metrics": shown}, **spec)
    decision = runs.decide(view(run=subject, model=model(status={"resolved": resolved})), NOW)
    found = find(decision.status.conditions, "RewardsInformative")
    assert found is not None
    assert told in found.message
    assert ("closes turns with '<|im_end|>'" in found.message) == ("[7]" in told)


EQUAL = {"group/zero_variance_fraction": "1"}


@pytest.mark.parametrize(
    ("metrics", "reason", "said"),
    [
        (EQUAL | {"group/all_fail_fraction": "0.95"}, "AllFailed", "choose easier tasks"),
        (EQUAL | {"group/all_pass_fraction": "1"}, "AllPassed", "choose harder tasks"),
        (
            EQUAL | {"group/all_fail_fraction": "1", "completion/no_answer_fraction": "0.97"},
            "NoAnswers",
            "taskset.answerExtraction finds no answer in 97% of the completions",
        ),
        # Cut answers lack what is looked for, and fail: the cut is the cause.
        (
            EQUAL
            | {"group/all_fail_fraction": "1", "completion/no_answer_fraction": "1"}
            | {"completion/truncated_fraction": "0.9"},
            "Truncating",
            "90% of the completions were cut off: raise sampling.maxTokens",
        ),
        # Right answers may ramble on to the limit.
        (
            EQUAL | {"group/all_pass_fraction": "1", "completion/truncated_fraction": "1"},
            "AllPassed",
            "choose harder tasks",
        ),
        (EQUAL, "ZeroVarianceGroups", "Choose easier or harder tasks"),
        # Without a reward a group is not one of equal rewards, and teaches as little.
        (
            {"group/zero_variance_fraction": "0", "completion/unscored_fraction": "0.8"},
            "RewardErrors",
            "80% of the completions could not be scored",
        ),
    ],
)
def test_rewards_that_teach_nothing_name_their_cause(
    metrics: dict[str, str], reason: str, said: str
) -> None:
    found = find(decided(metrics).status.conditions, "RewardsInformative")
    assert found is not None
    assert (found.status, found.reason) == ("False", reason)
    assert said in found.message


def test_rounds_that_teach_nothing_are_told_until_their_step_is_taken() -> None:
    told = {"step": 4, "rounds": 2, "reason": "RewardsUninformative", "message": "Service x fails"}
    before = runs.decide(view(run=run(status={"step": 3, "barrenRounds": told})), NOW)
    found = find(before.status.conditions, "RewardsInformative")
    assert found is not None
    assert (found.status, found.reason) == ("False", "RewardsUninformative")
    assert found.message == "Service x fails"
    ready = find(before.status.conditions, "Ready")
    assert ready is not None
    assert ready.message.endswith("no group teaches in round 2 for the next: Service x fails")
    after = runs.decide(view(run=run(status={"step": 4, "barrenRounds": told})), NOW)
    assert said(after, "RewardsInformative") == "Unknown/NotMeasured"


def decided(metrics: dict[str, str], **spec: Any) -> RunDecision:
    """About a run whose latest step has these metrics."""
    shown = [{"name": name, "value": value} for name, value in metrics.items()]
    return runs.decide(view(run=run(status={"metrics": shown}, **spec)), NOW)


def test_a_high_mismatch_is_told_with_its_figure_and_the_threshold() -> None:
    apart = {"policy/mismatch_kl": "0.02", "logprob/difference_mean": "1e-5"}
    decision = decided(apart)
    found = find(decision.status.conditions, "LogprobsAligned")
    assert found is not None
    assert (found.status, found.reason) == ("False", "HighMismatch")
    assert "policy/mismatch_kl is 0.02, logprobs.mismatchKLThreshold 0.01: " in found.message
    # Warn: it trains on.
    assert said(decision, "Ready") == "True/Training"
    assert said(decided(apart, logprobs={"mismatchKLThreshold": "0.03"}), "LogprobsAligned") == (
        "True/Aligned"
    )
    assert said(decided({"policy/mismatch_kl": "0.01"}), "LogprobsAligned") == "Unknown/NotMeasured"


def test_log_probs_are_judged_where_a_batch_is_first_trained() -> None:
    moved = {
        "policy/mismatch_kl": "0.5",
        "logprob/difference_mean": "0.3",
        "batch/steps_before": "1",
    }
    shown = [{"name": name, "value": value} for name, value in moved.items()]
    aligned = decided({"logprob/difference_mean": "1e-5"}).status.conditions
    paused = run(status={"metrics": shown}, logprobs={"onMisaligned": "Pause"})
    status = paused.status.model_copy(update={"conditions": aligned})
    later = runs.decide(view(run=paused.model_copy(update={"status": status})), NOW)
    assert said(later, "LogprobsAligned") == "True/Aligned"
    assert said(later, "Ready") == "True/Training"


def test_a_run_that_shall_pause_is_held_until_threshold_or_policy_let_it_go() -> None:
    apart = {"policy/mismatch_kl": "0.02"}
    held = decided(apart, logprobs={"onMisaligned": "Pause"})
    assert said(held, "Ready") == "True/LogprobsMisaligned"
    assert said(held, "Suspended") == "True/LogprobsMisaligned"
    assert held.runner == "Delete"
    found = find(held.status.conditions, "Suspended")
    assert found is not None
    assert "raise the threshold or set Warn" in found.message
    for lets_go in (
        {"onMisaligned": "Warn"},
        {"onMisaligned": "Pause", "mismatchKLThreshold": "0.02"},
    ):
        assert said(decided(apart, logprobs=lets_go), "Ready") == "True/Training"
    # Before any step nothing is known, and nothing held.
    assert said(decided({}, logprobs={"onMisaligned": "Pause"}), "Ready") == "True/Training"
