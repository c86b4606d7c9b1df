"""What a call optimizes, against autograd of the formula in float64."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.test_gradients import naive_loss
from tests.trainer.tiny import Volume
from torch import Tensor

from espalier.api.wire.gradients import (
    BackwardRequest,
    ForwardBackwardRequest,
    ForwardRequest,
    ForwardResult,
)
from espalier.trainer.batch.losses import DEFAULTS, LossSpec
from espalier.trainer.batch.objective import CallTokens, call_spec, token_loss
from espalier.trainer.batch.step_metrics import checkpoint_metrics
from espalier.trainer.batch.tally import Tally, total
from espalier.trainer.engine.commands import Empty
from espalier.trainer.engine.engine import Engine
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError

Sequence = dict[str, Tensor]
LENGTHS = (3, 1, 5, 2, 4, 2, 1, 6)
AGGREGATIONS = ("TokenSum", "TokenMean", "SequenceMean", "Constant")


def spec(**fields: Any) -> LossSpec:
    request = {"inputs": tiny.trajectories(), **fields}
    return call_spec(ForwardBackwardRequest.model_validate(request))


def aggregated(aggregation: str) -> dict[str, Any]:
    constant = {"aggregation_constant": 7} if aggregation == "Constant" else {}
    return {"aggregation": aggregation, **constant}


def sequences(seed: int = 0) -> list[Sequence]:
    """Eight answers whose log-probs, sampler's and trainer's, lie near each other."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int, spread: float) -> Tensor:
        return spread * torch.randn(count, generator=generator, dtype=torch.float64)

    found = []
    for number, count in enumerate(LENGTHS):
        lp = drawn(count, 1.0) - 3
        weights = drawn(count, 1.0)
        # Of cross_entropy a token of weight 0 does not count, nor a sequence of them.
        weights[: count if number == 3 else count // 3] = 0
        found.append(
            {
                **{"lp": lp, "q": lp + drawn(count, 0.4), "o": lp + drawn(count, 0.2)},
                **{"a": drawn(count, 1.0), "w": weights},
            }
        )
    return found


def naive_weight(objective: Any, lp: Tensor, one: Sequence) -> Tensor:
    """The off-policy weight by its definition, token by token."""
    mode, (low, high) = objective.correction.mode, objective.correction.bounds
    first = one["o"] if objective.ratio_anchor == "Trainer" else lp.detach()
    ratios = (first - one["q"]).exp()
    if mode.startswith("Sequence"):
        ratios = ratios.prod().pow(1 / len(ratios)).expand(len(ratios))
    weights = {
        "None": [1.0 for _ in ratios],
        "Truncate": [min(float(r), high) for r in ratios],
        "Mask": [float(low <= float(r) <= high) for r in ratios],
    }[mode.removeprefix("Sequence").removeprefix("Token")]
    return torch.tensor(weights, dtype=torch.float64)


def naive(wanted: LossSpec, whole: list[Sequence]) -> list[Tensor]:
    """The derivative of the aggregated loss by every log-prob, nothing in closed form."""
    objective = wanted.objective
    leaves = [one["lp"].clone().requires_grad_() for one in whole]
    by_token = []
    for lp, one in zip(leaves, whole, strict=True):
        compared = one["o"] if objective.ratio_anchor == "Trainer" else one["q"]
        weight = naive_weight(objective, lp, one)
        # gspo's ratio is of the sequence, so all of it is there for each token's loss.
        terms = [
            naive_loss(wanted.name, lp, compared, one["a"] * pick, one["w"] * pick)
            if wanted.name != "gspo"
            else naive_loss(wanted.name, lp, compared, one["a"] * pick, torch.ones_like(lp))
            for pick in torch.eye(len(lp), dtype=torch.float64)
        ]
        if wanted.name == "dro":
            terms = [
                -(lp[t] * one["a"][t] - 0.5 * 0.05 * (lp[t] - compared[t]) ** 2)
                for t in range(len(lp))
            ]
        by_token.append(torch.stack(terms) * weight)
    counted = [
        one["w"] != 0 if wanted.name == "cross_entropy" else torch.ones(len(one["w"])).bool()
        for one in whole
    ]
    sums, tokens = torch.stack([t.sum() for t in by_token]), [int(c.sum()) for c in counted]
    loss = {
        "TokenSum": sums.sum,
        "TokenMean": lambda: sums.sum() / sum(tokens),
        "SequenceMean": lambda: torch.stack(
            [s / n for s, n in zip(sums, tokens, strict=True) if n]
        ).mean(),
        "Constant": lambda: sums.sum() / (sum(n > 0 for n in tokens) * 7),
    }[objective.aggregation]()
    loss.backward()
    return [lp.grad if lp.grad is not None else torch.zeros_like(lp) for lp in leaves]


def call(wanted: LossSpec, part: list[Sequence]) -> tuple[list[Tensor], Tally]:
    """One call of these sequences packed as a row."""
    ends = list(itertools.accumulate(len(one["lp"]) for one in part))
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    flat = {name: torch.cat([one[name] for one in part]) for name in part[0]}
    weights = flat["w"] if wanted.takes_weights and wanted.name != "gspo" else None
    result = token_loss(
        wanted,
        CallTokens(
            logprobs=flat["lp"],
            sampling=flat["q"],
            anchor=flat["o"] if wanted.objective.ratio_anchor == "Trainer" else None,
            advantages=flat["a"],
            weights=torch.ones_like(flat["w"]) if weights is None else weights,
            sequences=bounds,
        ),
    )
    return [result.gradient[start:stop] for start, stop in bounds], result.sums


def stepped(wanted: LossSpec, calls: list[list[Sequence]]) -> list[Tensor]:
    """The gradient of a step of several calls, by sequence."""
    found = [call(wanted, part) for part in calls]
    factor = total([tally for _, tally in found]).step_factor
    return [factor * gradient for gradients, _ in found for gradient in gradients]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in pairs)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", list(DEFAULTS))
def test_a_step_is_the_aggregated_loss_however_it_is_split(loss: str, aggregation: str) -> None:
    wanted, whole = spec(loss_fn=loss, **aggregated(aggregation)), sequences()
    expected = naive(wanted, whole)
    assert equal(stepped(wanted, [whole]), expected)
    assert equal(stepped(wanted, [whole[:4], whole[4:]]), expected)
    assert equal(stepped(wanted, [[one] for one in whole]), expected)


MASKS = ("TokenMask", "SequenceMask")
MODES = ("None", *MASKS, "TokenTruncate", "SequenceTruncate")
COMPARING = [loss for loss in DEFAULTS if loss != "cross_entropy"]


@pytest.mark.parametrize(
    ("anchor", "mode"),
    [("Sampler", mode) for mode in MASKS] + [("Trainer", mode) for mode in MODES],
)
@pytest.mark.parametrize("loss", COMPARING)
def test_the_correction_is_its_formula(loss: str, anchor: str, mode: str) -> None:
    limits = {} if mode == "None" else {"max_ratio": 1.2}
    limits |= {"min_ratio": 0.9} if mode in MASKS else {}
    wanted = spec(
        loss_fn=loss,
        aggregation="SequenceMean",
        ratio_anchor=anchor,
        correction={"mode": mode, **limits},
    )
    assert equal(stepped(wanted, [sequences()]), naive(wanted, sequences()))


@pytest.mark.parametrize(
    ("mode", "weight", "truncated", "masked"),
    [("TokenTruncate", 2.25 / 3, 1, 0), ("TokenMask", 1 / 3, 0, 2)],
)
def test_corrected_tokens_are_counted(
    mode: str, weight: float, truncated: int, masked: int
) -> None:
    ratios = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64)
    zeros = torch.zeros_like(ratios)
    one = {"lp": zeros, "q": -ratios.log(), "o": zeros, "a": zeros + 1, "w": zeros + 1}
    limits = {"max_ratio": 1.0} | ({"min_ratio": 0.5} if mode == "TokenMask" else {})
    wanted = spec(ratio_anchor="Trainer", correction={"mode": mode, **limits})
    _, tally = call(wanted, [one])
    figures = checkpoint_metrics(tally)
    assert figures["policy/correction_weight_mean"] == pytest.approx(weight)
    assert figures["policy/correction_truncated_fraction"] == pytest.approx(truncated / 3)
    assert figures["policy/correction_masked_fraction"] == pytest.approx(masked / 3)
    assert "policy/correction_weight_mean" not in checkpoint_metrics(call(spec(), [one])[1])


def test_without_an_anchor_the_batch_is_seen_for_the_first_time() -> None:
    wanted = spec(ratio_anchor="Trainer", correction={"mode": "TokenTruncate", "max_ratio": 1.5})
    whole = sequences()
    now = [one | {"o": one["lp"]} for one in whole]
    given = stepped(wanted, [now])
    left_out = [
        token_loss(
            wanted, CallTokens(o["lp"], o["q"], None, o["a"], o["w"] * 0 + 1, [(0, len(o["lp"]))])
        ).gradient
        for o in whole
    ]
    assert equal(given, left_out)
    # The ratio of the loss is 1, and the weight of the sampler's tokens is left.
    by_hand = [-(o["lp"] - o["q"]).exp().clamp(max=1.5) * o["a"] for o in whole]
    assert equal(given, by_hand)


def test_a_masked_token_may_be_infinitely_unlikely() -> None:
    one = {"lp": torch.zeros(2), "q": torch.tensor([0.0, -200.0]), "o": torch.zeros(2)}
    one |= {"a": torch.ones(2), "w": torch.ones(2)}
    gradients, _ = call(spec(correction={"mode": "TokenMask"}), [one])
    assert gradients[0].tolist() == [-1.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "field", "remedy"),
    [
        ({"aggregation_constant": 3}, "aggregation_constant", "with aggregation Constant"),
        ({"aggregation": "Constant"}, "aggregation_constant", "with aggregation Constant"),
        ({"correction": {"mode": "TokenTruncate"}}, "correction.mode", "ratio_anchor Trainer"),
        ({"correction": {"mode": "SequenceTruncate"}}, "correction.mode", "TokenMask or"),
        ({"correction": {"max_ratio": 2.0}}, "correction.max_ratio", "choose a mode"),
        (
            {"ratio_anchor": "Trainer", "correction": {"mode": "TokenTruncate", "min_ratio": 0.5}},
            *("correction.min_ratio", "choose TokenMask or SequenceMask"),
        ),
        (
            {"correction": {"mode": "TokenMask", "min_ratio": 3.0}},
            *("correction.min_ratio", "swap them"),
        ),
        (
            {"loss_fn": "cross_entropy", "correction": {"mode": "TokenMask"}},
            *("correction", "choose another loss"),
        ),
        (
            {"loss_fn": "dro", "importance_level": "Sequence"},
            *("importance_level", "importance_sampling, ppo, cispo, gspo"),
        ),
        ({"loss_fn": "gspo", "importance_level": "Token"}, "importance_level", "choose ppo"),
        (
            {"loss_fn": "cross_entropy", "ratio_anchor": "Trainer"},
            *("ratio_anchor", "choose another loss"),
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    fields: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(CommandError) as refused:
        spec(**fields)
    problem = refused.value.problem
    assert (refused.value.status, problem.reason) == (422, "InvalidRequest")
    assert problem.detail.startswith(f"{field}: ")
    assert remedy in problem.remedy


def test_splits_are_drawn_at_random_too() -> None:
    wanted, whole = spec(loss_fn="ppo", aggregation="SequenceMean"), sequences(3)
    cuts = sorted(random.Random(0).sample(range(1, 8), 3))
    parts = [whole[a:b] for a, b in itertools.pairwise([0, *cuts, 8])]
    assert equal(stepped(wanted, parts), naive(wanted, whole))


def calls(*parts: list[Any], **fields: Any) -> list[ForwardBackwardRequest]:
    common = {"group_size": 2, "loss_fn": "ppo", **fields}
    return [ForwardBackwardRequest.model_validate({"inputs": p, **common}) for p in parts]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_step_of_the_trainer_is_the_same_for_every_split(
    engine: Engine, aggregation: str
) -> None:
    whole, norms = tiny.trajectories(groups=4, size=2), []
    for number, parts in enumerate(([whole], [whole[:4], whole[4:]], [whole[:2], whole[2:]])):
        for index, request in enumerate(calls(*parts, **aggregated(aggregation))):
            tiny.send(engine, "forward-backward", request, (f"s{number}", index))
        factor = total(engine.state.tallies).step_factor
        norms.append(engine.state.compute.propose(tiny.optim_step(), factor).gradient_norm)
        tiny.send(engine, "zero-grad", Empty(), (f"s{number}", 9))
    assert norms == [pytest.approx(norms[0], rel=1e-5)] * 3
    assert (factor == 1) == (aggregation == "TokenSum")


# Three answers, by log-probs, the sampler's, and advantage; and the gradients of TRL 1.16.0's
# GRPOTrainer._compute_loss by these log-probs, with importance_sampling_level "sequence".
ANSWERS = [
    ([-1.0, -2.0, -0.5, -3.0], [-1.3, -1.9, -0.9, -3.1], 1.0),
    ([-0.7, -1.4], [-0.5, -1.9], 0.5),
    ([-2.5, -0.1, -1.2], [-2.0, -0.2, -1.3], -2.0),
]
NEAR_1 = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.17}
OF_TRL: dict[str, tuple[dict[str, Any], list[float]]] = {
    # loss_type grpo, epsilon 0.1, epsilon_high 0.17
    "grpo": (
        {"loss_fn": "ppo", "loss_fn_config": NEAR_1, "aggregation": "SequenceMean"},
        [0.0, -0.096819520227, 0.201074981786],
    ),
    # loss_type bnpo, the same
    "bnpo": (
        {"loss_fn": "ppo", "loss_fn_config": NEAR_1, "aggregation": "TokenMean"},
        [0.0, -0.064546346818, 0.201074981786],
    ),
    # loss_type cispo, epsilon_high 1.17
    "cispo": (
        {
            **{"loss_fn": "cispo", "aggregation": "TokenMean"},
            "loss_fn_config": {"clip_high_threshold": 1.17},
        },
        [-0.13, -0.064546346818, 0.201074981786],
    ),
}


@pytest.mark.parametrize(("fields", "by_answer"), OF_TRL.values(), ids=OF_TRL.keys())
def test_one_ratio_for_a_sequence_has_the_gradients_of_trl(
    fields: dict[str, Any], by_answer: list[float]
) -> None:
    whole = []
    for lp, q, advantage in ANSWERS:
        one = {"lp": torch.tensor(lp, dtype=torch.float64), "q": torch.tensor(q).double()}
        zeros = torch.zeros_like(one["lp"])
        whole.append(one | {"o": zeros, "a": zeros + advantage, "w": zeros + 1})
    found = stepped(spec(importance_level="Sequence", **fields), [whole])
    expected = [[g] * len(one["lp"]) for g, one in zip(by_answer, whole, strict=True)]
    assert [row.tolist() for row in found] == [pytest.approx(row, abs=1e-6) for row in expected]


@pytest.mark.parametrize("anchor", ["Sampler", "Trainer"])
def test_gspo_is_ppo_with_one_ratio_for_a_sequence(anchor: str) -> None:
    common = {"ratio_anchor": anchor, "correction": {"mode": "SequenceMask", "max_ratio": 1.2}}
    ppo = spec(loss_fn="ppo", importance_level="Sequence", **common)
    assert equal(stepped(ppo, [sequences()]), naive(spec(loss_fn="gspo", **common), sequences()))


OBJECTIVES: dict[str, dict[str, Any]] = {
    "aggregated": {"aggregation": "SequenceMean"},
    "corrected": {
        **{"ratio_anchor": "Trainer", "aggregation": "TokenMean"},
        "correction": {"mode": "SequenceTruncate", "max_ratio": 1.1},
    },
    "with a bonus for entropy": {"entropy_coefficient": 0.1, "aggregation": "TokenMean"},
    "held by its advantages": {"kl": {"coefficient": 0.1, "reference": "Base", "discount": 0.5}},
    "held by its loss": {"kl": {"coefficient": 0.1, "reference": "Base", "placement": "Loss"}},
}


@pytest.mark.parametrize("fields", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_crash_before_the_step_changes_nothing(
    volume: Volume, policy: Policy, tmp_path: Path, fields: dict[str, Any]
) -> None:
    whole, digests = tiny.trajectories(groups=4, size=2), []
    for crashes in (False, True):
        policy.reset()
        place = tmp_path / str(crashes)
        place.mkdir()
        (place / "bases").symlink_to(volume.path / "bases")
        engine = tiny.engine(place, volume.base, policy)
        engine.assign(tiny.assignment())
        for index, request in enumerate(calls(whole[:4], whole[4:], **fields)):
            tiny.send(engine, "forward-backward", request, ("s", index))
        if crashes:
            engine.state.log.close()
            engine = tiny.engine(place, volume.base, policy)
        digests.append(tiny.send(engine, "optim-step", tiny.optim_step(), ("s", 9)).digest)
        engine.state.log.close()
    assert digests[0] == digests[1]


def test_calls_of_a_step_that_add_up_differently_are_refused(engine: Engine) -> None:
    whole = tiny.trajectories(groups=4, size=2)
    (first,) = calls(whole[:4], aggregation="TokenMean")
    tiny.send(engine, "forward-backward", first, ("s", 0))
    for fields in ({"aggregation": "SequenceMean"}, aggregated("Constant"), {}):
        (other,) = calls(whole[4:], **fields)
        with pytest.raises(CommandError, match=r"the step's earlier calls have TokenMean") as one:
            tiny.send(engine, "forward-backward", other, ("s", 1))
        assert (one.value.status, one.value.problem.reason) == (409, "AggregationDiffers")
    forward = ForwardRequest(inputs=whole)
    answer = ForwardResult.model_validate_json(tiny.send(engine, "forward", forward, ("s", 2)).body)
    weights = [[1.0] * len(datum.mask) for datum in answer.data]
    custom = BackwardRequest(forward_id=answer.forward_id, weights=weights)
    with pytest.raises(CommandError, match="aggregation is TokenSum"):
        tiny.send(engine, "backward", custom, ("s", 3))
    assert engine.state.report().pending == 1


def test_an_anchor_is_the_trainers_own_log_prob_from_before_the_step(engine: Engine) -> None:
    whole = tiny.trajectories(groups=4, size=2)
    forward = ForwardRequest(inputs=whole)
    answer = ForwardResult.model_validate_json(tiny.send(engine, "forward", forward, ("s", 0)).body)
    anchored = [
        {"samples": [one.samples[0].model_copy(update={"anchor_logprobs": datum.logprobs})]}
        | {"reward": one.reward}
        for one, datum in zip(whole, answer.data, strict=True)
    ]
    metrics = []
    for seq, inputs in enumerate((whole, anchored), 1):
        (request,) = calls(inputs, ratio_anchor="Trainer")
        told = tiny.send(engine, "forward-backward", request, ("s", seq)).body
        metrics.append(json.loads(told)["metrics"])
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    (unread,) = calls(anchored)
    with pytest.raises(CommandError, match="anchor_logprobs: are read with ratio_anchor Trainer"):
        tiny.send(engine, "forward-backward", unread, ("s", 8))
    (mixed,) = calls([*anchored[:4], *whole[4:]], ratio_anchor="Trainer")
    with pytest.raises(CommandError, match="anchor_logprobs: are missing in some samples"):
        tiny.send(engine, "forward-backward", mixed, ("s", 9))
