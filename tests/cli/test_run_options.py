"""The options of ``run create`` are the fields of a run's spec."""

from __future__ import annotations

import pytest

from espalier.api.trainingrun import TrainingRunSpec
from espalier.cli.failure import CliError
from espalier.cli.run_options import LEFT_OUT, OPTIONS, RunOption, given, spec_of


def option(flag: str) -> RunOption:
    return next(option for option in OPTIONS if option.flag == flag)


def test_every_field_of_a_run_has_an_option() -> None:
    fields = {field.alias for field in TrainingRunSpec.model_fields.values()} - LEFT_OUT
    assert {option.path[0] for option in OPTIONS} == fields


def test_no_two_fields_share_an_option() -> None:
    flags = [option.flag for option in OPTIONS] + ["--model", "--json", "--dry-run", "--namespace"]
    assert len(flags) == len(set(flags))
    assert len({option.parameter for option in OPTIONS}) == len(OPTIONS)


@pytest.mark.parametrize(
    ("flag", "path"),
    [
        ("--loss", "loss.name"),
        ("--loss-clip-high", "loss.clipHigh"),
        ("--optimizer-beta1", "optimizer.beta1"),
        ("--max-tokens", "sampling.maxTokens"),
        ("--seed", "taskset.seed"),
        ("--run-seed", "seed"),
        ("--dataset", "taskset.reasoningGym.dataset"),
        ("--claim-path", "taskset.persistentVolumeClaim.path"),
        ("--keep-best-count", "checkpoint.keepBest.count"),
        ("--kl-reference-checkpoint-ref", "kl.reference.checkpointRef.name"),
    ],
)
def test_an_option_is_named_after_its_field(flag: str, path: str) -> None:
    assert ".".join(option(flag).path) == path


def test_an_option_has_the_help_and_the_bounds_of_its_field() -> None:
    size = option("--group-size")
    assert (size.least, size.most, size.required) == (1, 1024, False)
    assert size.help.startswith("groupSize is the number of completions per task")
    assert [option.flag for option in OPTIONS if option.required] == ["--steps"]


def test_what_is_given_becomes_the_spec_and_nothing_else_does() -> None:
    fields = {option.parameter: None for option in OPTIONS} | {
        "steps": 3,
        "loss_clip_high": "1.2",
        "sampling_stop": ["###"],
        "sampling_chat_template_kwargs": '{"enable_thinking": false}',
    }
    assert spec_of(given(fields)) == {
        "steps": 3,
        "loss": {"clipHigh": "1.2"},
        "sampling": {"stop": ["###"], "chatTemplateKwargs": {"enable_thinking": False}},
    }


def test_a_mapping_that_is_not_json_is_named() -> None:
    with pytest.raises(CliError, match="--chat-template-kwargs is not JSON"):
        spec_of(given({"sampling_chat_template_kwargs": "enable_thinking=false"}))
