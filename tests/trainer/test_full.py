"""Full fine-tuning: every weight trains, exactly, behind the same commands and the same log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer import tiny
from tests.trainer.importing import commit_adapter, import_adapter, import_directory
from tests.trainer.tiny import MODEL, Volume
from torch import Tensor
from transformers import AutoModelForCausalLM

from espalier.trainer.batch.data import Datum, datums
from espalier.trainer.batch.losses import DEFAULTS, loss_spec
from espalier.trainer.compute.compute import LocalCompute
from espalier.trainer.engine import checkpoint_files
from espalier.trainer.engine.engine import Engine
from espalier.trainer.jobs.export import Wanted, export
from espalier.trainer.policy import trained_lm_head
from espalier.trainer.policy.frozen_lm_head import CHUNK_ELEMENTS
from espalier.trainer.policy.full import Full
from espalier.trainer.policy.policy import Policy, load_policy
from espalier.trainer.problems import CommandError, UserMistakeError
from espalier.trainer.volume import tensor_files
from espalier.trainer.volume.checkpoint_store import CheckpointStore

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def loaded(tiny_base: Volume) -> Policy:
    return tiny.policy(tiny_base.path, tiny_base.base, tiny.FULL)


@pytest.fixture
def full(loaded: Policy) -> Policy:
    """The tiny model before its first step, without gradients."""
    loaded.reset()
    loaded.drop_gradients()
    return loaded


@pytest.fixture
def engine(volume: Volume, full: Policy) -> Iterator[Engine]:
    made = tiny.engine(volume.path, volume.base, full)
    made.assign(tiny.assignment())
    yield made
    made.state.log.close()


def train(engine: Engine, steps: range, session: str = "s") -> None:
    for step in steps:
        tiny.send(engine, "forward-backward", tiny.forward_backward(step), (session, 2 * step))
        tiny.send(engine, "optim-step", tiny.optim_step(), (session, 2 * step + 1))


def weights(engine: Engine) -> State:
    assert isinstance(engine.state.compute, LocalCompute)
    return {n: p.detach().clone() for n, p in engine.state.compute.policy.parameters.items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def batch(policy: Policy, *, weighted: bool = False) -> list[Datum]:
    request = tiny.forward_backward()
    return datums(request, policy.limits, policies_compared=True, weighted=weighted)


def plain_gradient(volume: Volume, data: list[Datum], loss: str) -> State:
    """Autograd over padded-free sequences with all logits, in float32."""
    store = CheckpointStore(volume.path, MODEL)
    causal_lm = AutoModelForCausalLM.from_pretrained(store.open("base", volume.base).path)
    total = torch.zeros(())
    for datum in data:
        ids = torch.tensor([datum.prompt + datum.output])
        logits = causal_lm(input_ids=ids).logits[0, len(datum.prompt) - 1 : -1] / 0.7
        chosen = torch.tensor(datum.output).unsqueeze(1)
        logprobs = logits.log_softmax(dim=-1).gather(1, chosen).squeeze(1)
        if loss == "cross_entropy":
            total = total - logprobs.sum()
        else:
            ratio = (logprobs - torch.tensor(datum.sampling_logprobs)).exp()
            total = total - (ratio * torch.tensor(datum.advantages)).sum()
    total.backward()
    return {n: p.grad for n, p in causal_lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["importance_sampling", "cross_entropy"])
def test_every_weights_gradient_is_that_of_plain_autograd(
    tiny_base: Volume, full: Policy, loss: str
) -> None:
    data = batch(full)
    tiny.add_loss(full, data, loss_spec(loss, None), 0.7, 3)
    expected = plain_gradient(tiny_base, data, loss)
    assert expected.keys() == full.parameters.keys()
    for name, gradient in expected.items():
        found = full.parameters[name].grad
        assert found is not None
        assert float((found - gradient).abs().max() / gradient.abs().max()) < 1e-5, name


@pytest.mark.parametrize("loss", sorted(DEFAULTS))
def test_all_losses_step_all_weights(full: Policy, loss: str) -> None:
    compute = LocalCompute(full)
    before = {name: value.detach().clone() for name, value in full.parameters.items()}
    spec = loss_spec(loss, None)
    compute.add_loss(compute.admit(batch(full), spec), spec, 3)
    proposal = compute.propose(tiny.optim_step())
    assert proposal.finite
    compute.install(proposal)
    assert [n for n, p in full.parameters.items() if torch.equal(p, before[n])] == []


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_trained_head_equals_the_softmax_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, with_bias: bool
) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 3 * 40)
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (10, 8), "weight": (40, 8)} | ({"bias": (40,)} if with_bias else {})
    ours = {
        n: torch.randn(shape, generator=generator).double().requires_grad_()
        for n, shape in shapes.items()
    }
    plain = {n: value.detach().clone().requires_grad_() for n, value in ours.items()}
    targets = torch.randint(0, 40, (10,), generator=generator)
    given = torch.randn(10, generator=generator).double()

    made = trained_lm_head.evaluate(ours["hidden"], ours["weight"], ours.get("bias"), targets, 0.7)
    logits = torch.nn.functional.linear(plain["hidden"], plain["weight"], plain.get("bias")) / 0.7
    expected = torch.distributions.Categorical(logits=logits)
    made.logprobs.backward(given)
    expected.log_prob(targets).backward(given)

    torch.testing.assert_close(made.logprobs, expected.log_prob(targets), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.entropy, expected.entropy(), rtol=1e-12, atol=1e-12)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name].grad, value.grad, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_is_a_hugging_face_model_that_gives_the_trainers_log_probs(
    engine: Engine,
) -> None:
    train(engine, range(2))
    commit = engine.state.commits[-1]
    stored = engine.state.store.verify("checkpoint", commit.digest)
    assert (stored.manifest["adapter_type"], commit.lora_rank) == ("Full", 0)
    assert {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "optimizer/moments.safetensors",
    } < {*stored.manifest["files"]}
    assert json.loads((stored.path / "config.json").read_text())["dtype"] == "float32"
    assert same(load_file(stored.path / "model.safetensors"), weights(engine))
    causal_lm = AutoModelForCausalLM.from_pretrained(stored.path)
    datum = batch(engine.state.compute.policy)[0]  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = causal_lm(torch.tensor([datum.prompt + datum.output])).logits[0]
    expected = logits.log_softmax(-1)[len(datum.prompt) - 1 : -1]
    chosen = expected.gather(1, torch.tensor(datum.output)[:, None]).squeeze(1)
    scored = torch.tensor(engine.state.compute.score(engine.state.compute.admit([datum]))[0])
    torch.testing.assert_close(scored, chosen, rtol=0, atol=1e-5)


def test_large_models_are_written_in_shards_that_read_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files.full_files, "__defaults__", (40_000,))
    train(engine, range(1))
    stored = engine.state.store.verify("checkpoint", engine.state.commits[0].digest)
    names = {name for name in stored.manifest["files"] if name.startswith("model-")}
    assert len(names) > 2
    index = json.loads((stored.path / tensor_files.INDEX_FILE).read_text())
    assert set(index["weight_map"].values()) == names
    held = weights(engine)
    assert same(dict(tensor_files.weights_of(stored.path)), held)
    loaded = AutoModelForCausalLM.from_pretrained(stored.path)
    assert same({n: p.detach() for n, p in loaded.named_parameters()}, held)
    moments = tiny.moments(engine).tensors()
    assert same(dict(tensor_files.moments_of(stored.path)), moments)
    engine.assign(tiny.assignment(2, base=stored.digest, base_name="arith-000001", base_step=1))
    assert same(weights(engine), held)
    assert same(tiny.moments(engine).tensors(), moments)


def test_three_steps_a_restart_in_the_middle_of_a_step_and_three_more_are_six_steps(
    volume: Volume, engine: Engine, full: Policy
) -> None:
    train(engine, range(6))
    straight, digest = weights(engine), engine.state.commits[-1].digest
    engine.state.log.close()
    other = Volume(volume.path / "other", volume.base)
    (other.path / "bases").parent.mkdir()
    (other.path / "bases").symlink_to(volume.path / "bases")
    full.reset()
    interrupted = tiny.engine(other.path, other.base, full)
    interrupted.assign(tiny.assignment())
    train(interrupted, range(3))
    tiny.send(interrupted, "forward-backward", tiny.forward_backward(3), ("s", 6))
    interrupted.state.log.close()
    fresh = tiny.policy(other.path, other.base, tiny.FULL)
    resumed = tiny.engine(other.path, other.base, fresh)
    assert resumed.state.report().pending == 1
    tiny.send(resumed, "forward-backward", tiny.forward_backward(3), ("s", 6))
    assert resumed.state.report().pending == 1
    tiny.send(resumed, "optim-step", tiny.optim_step(), ("s", 7))
    train(resumed, range(4, 6))
    assert same(weights(resumed), straight)
    assert resumed.state.commits[-1].digest == digest
    resumed.state.log.close()


def test_a_fork_starts_from_a_full_checkpoint_with_or_without_adams_state(engine: Engine) -> None:
    train(engine, range(2))
    origin, after = engine.state.commits[0], weights(engine)
    for term, state in ((2, "Keep"), (3, "Reset")):
        engine.assign(
            tiny.assignment(
                term,
                branch=f"b{term}",
                base=origin.digest,
                base_name=origin.name,
                base_step=1,
                optimizer_state=state,
            )
        )
        assert tiny.moments(engine).steps == (1 if state == "Keep" else 0)
        train(engine, range(1, 2), f"fork-{term}")
        assert same(weights(engine), after) == (state == "Keep")


def test_without_a_checkpoint_it_starts_from_the_base(engine: Engine, volume: Volume) -> None:
    base = weights(engine)
    train(engine, range(1))
    engine.assign(tiny.assignment(2))
    assert same(weights(engine), base)
    assert tiny.moments(engine).steps == 0


def test_a_checkpoint_of_the_other_type_is_refused_with_the_way_out(
    engine: Engine, policy: Policy
) -> None:
    train(engine, range(1))
    with pytest.raises(CommandError, match="Full, not LoRA"):
        checkpoint_files.read(
            engine.state.store, engine.state.commits[0].digest, engine.state.base, tiny.ADAPTER
        )
    adapter = {name: value.detach() for name, value in policy.parameters.items()}
    stored = commit_adapter(
        engine.state.store, adapter, tiny.ADAPTER, model=MODEL, base=engine.state.base
    )
    before, state = weights(engine), engine.state.report()
    with pytest.raises(CommandError, match="LoRA, not Full") as caught:
        engine.assign(tiny.assignment(2, base=stored.digest, base_name="y", base_step=1))
    assert (caught.value.status, caught.value.problem.reason) == (409, "AdapterMismatch")
    assert "export --merged" in caught.value.problem.remedy
    assert engine.state.report() == state
    assert same(weights(engine), before)


def test_an_adapter_from_outside_is_refused(volume: Volume, tmp_path: Path) -> None:
    store = CheckpointStore(volume.path, "importer")
    with pytest.raises(UserMistakeError, match="fits LoRA alone"):
        import_adapter(store, tmp_path, tiny.FULL, model=MODEL, base=volume.base)


def test_an_untied_head_is_trained_beside_its_embedding(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny.causal_lm(tied=False).save_pretrained(source)
    stored = import_directory(CheckpointStore(tmp_path / "volume", "importer"), source)
    untied = load_policy(stored.path, tiny.FULL, "float32")
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= untied.parameters.keys()
    tiny.add_loss(untied, batch(untied), loss_spec("cross_entropy", None), 1.0, 3)
    head, embedding = (
        untied.parameters[name].grad for name in ("lm_head.weight", "model.embed_tokens.weight")
    )
    assert head is not None
    assert embedding is not None
    assert not torch.equal(head, embedding)


def test_a_base_whose_files_name_other_weights_is_refused(
    tiny_base: Volume, tmp_path: Path
) -> None:
    tiny.causal_lm().model.save_pretrained(tmp_path)
    with pytest.raises(UserMistakeError, match=r"do not hold model\.embed_tokens\.weight"):
        Full(tiny.causal_lm(), tmp_path)


def test_half_precision_weights_are_refused(tiny_base: Volume) -> None:
    path = CheckpointStore(tiny_base.path, MODEL).open("base", tiny_base.base).path
    with pytest.raises(UserMistakeError, match="steps would round") as caught:
        load_policy(path, tiny.FULL, "bfloat16")
    assert "spec.trainer.dtype: float32" in caught.value.problem.remedy


@pytest.mark.parametrize("merged", [False, True])
def test_an_export_is_the_model_without_adams_state(
    engine: Engine, volume: Volume, tmp_path: Path, merged: bool
) -> None:
    train(engine, range(1))
    output = tmp_path / "exported"
    wanted = Wanted(merged=merged, dtype="bfloat16")
    export(volume.path, engine.state.commits[0].name, output, wanted, force=False)
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    dtype = torch.bfloat16 if merged else torch.float32
    expected = {name: value.to(dtype) for name, value in weights(engine).items()}
    assert same({n: p.detach() for n, p in loaded.named_parameters()}, expected)
    assert not {"state.json", "optimizer", "manifest.json"} & {p.name for p in output.iterdir()}
    assert (output / "tokenizer.json").exists()


def test_the_planner_counts_every_weight(full: Policy) -> None:
    shape = LocalCompute(full).planner.costs.shape
    assert shape.rank == 0
    assert shape.trained == sum(value.numel() for value in full.parameters.values())
