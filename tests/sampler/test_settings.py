"""The pod's environment, and the flags that follow from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier.environment import SettingsError
from espalier.sampler import flags, launcher
from espalier.sampler.settings import SamplerSettings

GOOD = {
    "ESPALIER_MODEL": "arith",
    "ESPALIER_NAMESPACE": "default",
    "ESPALIER_POD_UID": "uid-1",
    "ESPALIER_VOLUME": "/weights",
    "ESPALIER_BASE": "sha256:" + "a" * 64,
    "ESPALIER_PUBLIC_KEYS": '{"operator": "PEM", "gateway": "PEM"}',
    "ESPALIER_DTYPE": "float32",
    "ESPALIER_MAX_MODEL_TOKENS": "512",
    "ESPALIER_MAX_ADAPTERS": "4",
    "ESPALIER_MAX_LORA_RANK": "20",
}
SMOLLM2 = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}
GIB = 2**30


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        SamplerSettings.read({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ESPALIER_BASE", "sha256:abc"),
        ("ESPALIER_BASE", "../../etc"),
        ("ESPALIER_DTYPE", "float16"),
        ("ESPALIER_MAX_MODEL_TOKENS", "0"),
        ("ESPALIER_MAX_ADAPTERS", "-1"),
        ("ESPALIER_MAX_ADAPTERS", "many"),
        ("ESPALIER_MAX_LORA_RANK", "257"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        SamplerSettings.read(GOOD | {name: value})


@pytest.mark.parametrize(("rank", "slots"), [(1, 8), (8, 8), (9, 16), (20, 32), (256, 256)])
def test_slots_are_of_the_next_rank_that_vllm_has(rank: int, slots: int) -> None:
    assert SamplerSettings.read(GOOD | {"ESPALIER_MAX_LORA_RANK": str(rank)}).slot_rank == slots


def test_the_cache_holds_sixteen_full_sequences_within_a_quarter_of_the_memory() -> None:
    settings = SamplerSettings.read(GOOD)
    per_token = 2 * 30 * 3 * 64 * 4
    assert flags.kv_cache_bytes(SMOLLM2, settings, 24 * GIB) == 16 * 512 * per_token
    assert flags.kv_cache_bytes(SMOLLM2, settings, GIB) == GIB // 4
    assert flags.kv_cache_bytes(SMOLLM2, settings, 1) == 2 * 512 * per_token


@pytest.mark.parametrize(("hidden", "threads"), [(64, 1), (128, 1), (576, 4)])
def test_matrices_below_the_grain_of_torch_get_one_thread(hidden: int, threads: int) -> None:
    assert flags.cpu_threads({"hidden_size": hidden}, 4) == threads
    assert flags.cpu_threads({"text_config": {"hidden_size": hidden}}, 4) == threads


def test_two_pods_do_not_share_a_seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(launcher, "_serve", lambda arguments, *_, cpu: started.append(arguments))
    monkeypatch.setattr(launcher.verified_store, "verify_base", lambda directory: None)
    monkeypatch.setattr(launcher.os, "environ", GOOD | {"ESPALIER_VOLUME": str(tmp_path)})
    base = tmp_path / "bases" / GOOD["ESPALIER_BASE"].replace(":", "-")
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(SMOLLM2))
    launcher.main()
    launcher.main()
    seeds = [arguments[arguments.index("--seed") + 1] for arguments in started]
    assert seeds[0] != seeds[1]


def test_the_threads_that_a_pods_template_names_are_those_that_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "cpu_count", lambda: 4)
    assert launcher.wanted_threads({}) == 4
    assert launcher.wanted_threads({"OMP_NUM_THREADS": "1"}) == 1
    assert launcher.wanted_threads({"OMP_NUM_THREADS": "many"}) == 4


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({}, "InvalidEnvironment"), (GOOD | {"ESPALIER_VOLUME": "/nowhere"}, "BaseNotFound")],
)
def test_a_users_mistake_ends_with_64_and_a_problem_in_the_termination_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    environment = environment | {"ESPALIER_TERMINATION_LOG": str(log)}
    monkeypatch.setattr(launcher.os, "environ", environment)
    with pytest.raises(SystemExit) as ended:
        launcher.main()
    assert ended.value.code == 64
    assert json.loads(log.read_text())["reason"] == reason
