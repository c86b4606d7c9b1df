"""Batches that fit, batches that must be cut, and batches that cannot be trained."""

from __future__ import annotations

from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.trainer import tiny
from tests.trainer.test_cost_model import QWEN3_4B, datum
from tests.trainer.test_gradients import difference, perturb, taken
from tests.trainer.tiny import Volume
from transformers import AutoModelForCausalLM, Qwen3Config

from espalier.api.model.adapter import Adapter
from espalier.trainer.batch.data import Datum, datums
from espalier.trainer.batch.losses import loss_spec
from espalier.trainer.batch.objective import call_spec
from espalier.trainer.batch.packing import Rows
from espalier.trainer.compute import gradients, measure, retry
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine.engine import Engine
from espalier.trainer.memory import cost_model, host, planner
from espalier.trainer.memory.planner import Cut, Plan, Planner, TooLargeError
from espalier.trainer.memory.row_costs import HeadBytes, Kept, RowCosts
from espalier.trainer.policy.policy import Policy
from espalier.trainer.problems import CommandError, UserMistakeError

GIB = 1 << 30
COSTS = RowCosts(
    QWEN3_4B,
    cost_model.row_size,
    whole=Kept(token=7e6, target=5e3, pair=0.0, gathered=1e5),
    outside=Kept(token=3e4, target=5e3, pair=0.0, gathered=0.0),
    head=HeadBytes(fixed=0, token=0.0, target=1e4, logits=1 << 20, chunk=512),
)
LOSS = loss_spec("importance_sampling", None)
ALONE = Cut(1, checkpointing=False)


def batch(policy: Policy) -> list[Datum]:
    return datums(tiny.forward_backward(), policy.limits, policies_compared=True)


@cache
def qwen3_4b() -> RowCosts:
    """Measured on a single layer of its width, for all 36; the head is that of a GPU."""
    layers = QWEN3_4B.layers
    config = Qwen3Config(
        hidden_size=QWEN3_4B.hidden,
        intermediate_size=QWEN3_4B.intermediate,
        num_hidden_layers=1,
        num_attention_heads=QWEN3_4B.heads,
        num_key_value_heads=QWEN3_4B.kv_heads,
        head_dim=QWEN3_4B.head_dim,
        vocab_size=512,
        tie_word_embeddings=True,
    )
    causal_lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    policy = Policy(causal_lm, Adapter(rank=QWEN3_4B.rank, alpha=32), torch.device("cpu"))
    assert policy.warning is None
    one = measure.row_costs(policy)
    pairs = zip(astuple(one.whole), astuple(one.outside), strict=True)
    whole = Kept(*(outside + layers * (kept - outside) for kept, outside in pairs))
    return replace(one, shape=QWEN3_4B, whole=whole, head=measure.chunked_head(QWEN3_4B, "cuda"))


@pytest.mark.parametrize(
    ("gigabytes", "tokens"), [(141, 16_384), (80, 8_192)], ids=["H200", "H100"]
)
def test_qwen3_4b_trains_long_rows_on_a_gpu_without_checkpointing(
    gigabytes: int, tokens: int
) -> None:
    base = 2 * (QWEN3_4B.trunk_parameters + QWEN3_4B.vocabulary * QWEN3_4B.hidden)
    training = cost_model.TRAINED_BYTES * QWEN3_4B.trained
    planner = Planner(qwen3_4b(), int(host.USABLE * gigabytes * 1e9) - base - training)
    group = [datum(512, 1024, seed, prompt_seed=seed) for seed in range(8)]
    found = planner.plan(group, tokens)
    assert not found.cut.checkpointing
    # At most one halving: reference 1.4 expects 16k tokens on 141 GB and 12k to 15k on 80 GB.
    assert found.cut.row_tokens >= tokens // 2


def test_rows_shrink_before_layers_are_checkpointed_and_the_boundary_is_exact() -> None:
    group = [datum(100, 100, seed, prompt_seed=seed) for seed in range(4)]
    roomy = Planner(COSTS, 1 << 60)
    alone = roomy.cut(group, ALONE).needed
    kept = replace(roomy, available=alone).plan(group, 4096)
    assert (kept.cut.checkpointing, len(kept.rows.with_grad)) == (False, 4)
    below = replace(roomy, available=alone - 1).plan(group, 4096)
    assert below.cut.checkpointing
    assert below.needed < alone
    with pytest.raises(TooLargeError) as caught:
        replace(roomy, available=alone - 1, checkpoints=False).plan(group, 4096)
    assert caught.value.needed == alone


def test_a_batch_that_cannot_fit_is_refused_with_its_numbers() -> None:
    planner = Planner(COSTS, 1 << 20)
    with pytest.raises(TooLargeError) as caught:
        planner.plan([datum(10, 10, 1), datum(200, 300, 2, prompt_seed=9)], 4096)
    assert (caught.value.datum, caught.value.tokens) == (1, 500)
    assert caught.value.needed > caught.value.available == 1 << 20


def test_an_entropy_bonus_is_planned_for(policy: Policy) -> None:
    compute, data = LocalCompute(policy), batch(policy)
    plain = call_spec(tiny.forward_backward())
    bonus = call_spec(tiny.forward_backward(entropy_coefficient=0.1))
    # So much for every target that no row with a bonus fits.
    dear = replace(compute.planner.costs, entropy=1e15)
    compute.planner = replace(compute.planner, costs=dear, available=1 << 40)
    compute.admit(data, plain)
    with pytest.raises(CommandError) as refused:
        compute.admit(data, bonus)
    assert refused.value.problem.reason == "BatchTooLarge"


def test_an_entropy_bonus_counts_its_row_and_one_more_chunk_of_logits() -> None:
    # The head's logits, not its layers' gradients, are the peak of such a row.
    head = replace(COSTS.head, logits=1 << 24)
    planner = Planner(replace(COSTS, entropy=5e3, head=head), 1 << 60)
    group = [datum(100, 50, seed, prompt_seed=seed) for seed in range(4)]
    cut = Cut(4096, checkpointing=True)
    more = planner.with_entropy().cut(group, cut).needed - planner.cut(group, cut).needed
    assert more == 200 * (5e3 + QWEN3_4B.vocabulary * QWEN3_4B.wide_bytes)


def test_a_refused_batch_is_neither_logged_nor_computed(engine: Engine) -> None:
    compute = engine.state.compute
    assert isinstance(compute, LocalCompute)
    compute.planner = replace(compute.planner, available=1000)
    with pytest.raises(CommandError) as caught:
        tiny.send(engine, "forward-backward", tiny.forward_backward(), ("a", 1))
    assert caught.value.status == 413
    assert caught.value.problem.reason == "BatchTooLarge"
    assert caught.value.problem.detail.startswith("inputs[")
    assert not engine.state.log.pending()
    assert all(p.grad is None for p in compute.policy.parameters.values())
    compute.planner = replace(compute.planner, available=1 << 40)
    assert tiny.send(engine, "forward-backward", tiny.forward_backward(), ("a", 1)).status == 200


def test_a_batch_is_laid_out_once_from_admission_to_gradients(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[Rows] = []
    lay_out = planner.lay_out
    monkeypatch.setattr(planner, "lay_out", lambda *a: (laid.append(lay_out(*a)), laid[-1])[1])
    tiny.send(engine, "forward-backward", tiny.forward_backward(), ("a", 1))
    assert len(laid) == 1


@pytest.mark.parametrize("failing", [0, 1], ids=["at-once", "after-a-failed-allocation"])
def test_a_replay_with_other_memory_gives_the_same_gradients_bit_for_bit(
    volume: Volume, policy: Policy, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    one = LocalCompute(policy)
    # Room for one datum at a time, so that the order of the sums is not that of one row.
    needed = one.planner.cut(batch(policy), ALONE).needed
    monkeypatch.setenv(host.MEMORY_VARIABLE, str(needed))
    first = tiny.engine(volume.path, volume.base, policy)
    first.assign(tiny.assignment())
    failures = [MemoryError()] * failing
    add_loss = gradients.add_loss

    def fails(*arguments: object) -> object:
        if failures:
            raise failures.pop()
        return add_loss(*arguments)

    monkeypatch.setattr(gradients, "add_loss", fails)
    tiny.send(first, "forward-backward", tiny.forward_backward(), ("a", 1))
    (record,) = first.state.log.pending()
    expected = taken(policy)
    first.state.log.close()
    for available in (1 << 40, 1000):
        monkeypatch.setenv(host.MEMORY_VARIABLE, str(available))
        policy.drop_gradients()
        again = tiny.engine(volume.path, volume.base, policy)
        assert again.state.log.pending() == [record]
        again.state.log.close()
        found = taken(policy)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    # Without what was recorded the same batch would be one row, and the sums another.
    monkeypatch.setenv(host.MEMORY_VARIABLE, str(1 << 40))
    policy.drop_gradients()
    roomy = LocalCompute(policy)
    add_loss(policy, roomy.admit(batch(policy), LOSS).plans[0].rows, LOSS, 3)
    other = taken(policy)
    assert not all(torch.equal(other[name], value) for name, value in expected.items())


def test_a_log_from_before_cuts_were_kept_goes_on(volume: Volume, policy: Policy) -> None:
    first = tiny.engine(volume.path, volume.base, policy)
    first.assign(tiny.assignment())
    tiny.send(first, "forward-backward", tiny.forward_backward(), ("a", 1))
    first.state.log._db.execute("ALTER TABLE commands DROP COLUMN cuts")
    first.state.log.close()
    again = tiny.engine(volume.path, volume.base, policy)
    assert [record.cuts for record in again.state.log.pending()] == [""]
    assert len(again.state.tallies) == 1
    assert tiny.send(again, "optim-step", tiny.optim_step(), ("a", 2)).status == 200
    again.state.log.close()


def test_gradients_do_not_depend_on_the_plan(policy: Policy) -> None:
    perturb(policy)
    compute = LocalCompute(policy)
    compute.planner = replace(compute.planner, available=1 << 40)
    compute.add_loss(compute.admit(batch(policy), LOSS), LOSS, 3)
    whole = taken(policy)
    alone = compute.planner.cut(batch(policy), ALONE).needed
    compute.planner = replace(compute.planner, available=alone - 1)
    admitted = compute.admit(batch(policy), LOSS)
    assert admitted.plans[0].cut.checkpointing
    compute.add_loss(admitted, LOSS, 3)
    assert difference(taken(policy), whole) < 1e-5
    assert not policy.checkpointing


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_is_retried_carefully_then_answered(policy: Policy, error: Exception) -> None:
    compute = LocalCompute(policy)
    tiny.add_loss(policy, batch(policy), LOSS, 1.0, 3)
    before = {name: p.grad.clone() for name, p in policy.parameters.items() if p.grad is not None}
    (chosen,) = compute.admit(batch(policy), LOSS).plans
    again = compute.planner.cut(batch(policy), chosen.cut.careful(checkpointing=True))
    tried: list[tuple[Rows, bool]] = []

    def fails(rows: Rows) -> None:
        gradients.add_loss(policy, rows, LOSS, 3)
        tried.append((rows, policy.checkpointing))
        raise error

    def recut(cut: Cut) -> Plan:
        return compute.planner.cut(chosen.rows.data, cut)

    with pytest.raises(CommandError) as caught:
        retry.attempt(policy, chosen, recut, fails)
    assert (caught.value.status, caught.value.problem.reason) == (507, "OutOfMemory")
    assert [(len(rows.with_grad), on) for rows, on in tried] == [
        (len(chosen.rows.with_grad), False),
        (len(again.rows.with_grad), True),
    ]
    assert before
    for name, gradient in before.items():
        assert torch.equal(policy.parameters[name].grad, gradient)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert not retry.is_out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.parametrize("given", ["", "0", "-1", "2Gi"])
def test_an_override_that_is_not_a_number_of_bytes_is_refused(given: str) -> None:
    with pytest.raises(UserMistakeError, match=host.MEMORY_VARIABLE):
        host.read_available(torch.device("cpu"), {host.MEMORY_VARIABLE: given})


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (
            {
                "memory.max": "5000",
                "memory.current": "2000",
                "memory.stat": "anon 1200\ninactive_file 800",
            },
            3800,
        ),
        ({"memory.max": "max", "memory.current": "2000"}, 1024 * 100),
        (
            {
                "memory/memory.limit_in_bytes": "9000",
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 600",
            },
            8600,
        ),
        ({}, 1024 * 100),
        ({"memory.max": "1000", "memory.current": "2000", "memory.stat": "inactive_file 0"}, 0),
    ],
    ids=["v2", "v2-unlimited", "v1", "none", "over"],
)
def test_free_memory_is_the_least_of_the_control_group_and_the_machine(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    (tmp_path / "memory").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 200 kB\nMemAvailable: 100 kB\n")
    assert host.free_host_memory(tmp_path, meminfo) == free
