"""Traces kept beside the log: what makes one fit to train on, and what is said when it is not."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.api.platform import JobReport, TraceEnter, TraceExit
from espalier.api.wire.gradients import ForwardRequest
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.problems import CommandError
from espalier.trainer.volume import trace_store
from espalier.trainer.volume.trace_store import Traces

TRACE, JOB = str(uuid.UUID(int=1)), uuid.UUID(int=2).hex
SAMPLE = TrajectorySample(prompt_token_ids=[1], output_token_ids=[2], output_logprobs=[-1.0])
DONE = TraceExit(reward=0.5, stop_reason="done")


@pytest.fixture
def kept(tmp_path: Path) -> Traces:
    return Traces(tmp_path)


def rolled_out(kept: Traces, trace: str = TRACE, left: TraceExit = DONE, group: str = "") -> str:
    kept.enter(trace, TraceEnter(group_id=group or None))
    kept.add(trace, SAMPLE)
    kept.exit(trace, left)
    return trace


def resolve(kept: Traces, *inputs: str | TrajectoryPayload, group_size: int | None = None) -> list:
    return kept.resolve(ForwardRequest(inputs=list(inputs), group_size=group_size)).inputs


def test_an_id_stands_for_its_trajectory_in_its_place(kept: Traces) -> None:
    rolled_out(kept)
    inline = TrajectoryPayload(samples=[SAMPLE], reward=1.0)
    first, second = resolve(kept, inline, uuid.UUID(TRACE).hex)
    assert first is inline
    assert (second.samples, second.reward) == ([SAMPLE], 0.5)


def test_traces_outlive_the_process(kept: Traces, tmp_path: Path) -> None:
    rolled_out(kept)
    assert len(resolve(Traces(tmp_path), TRACE)) == 1


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\x00" + b"x" * 8000])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "traces.sqlite").write_bytes(content)
    kept = Traces(tmp_path)
    rolled_out(kept)
    assert len(resolve(kept, TRACE)) == 1
    assert (tmp_path / "traces.sqlite.damaged").read_bytes() == content


def test_a_file_of_an_older_trainer_goes_on(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "traces.sqlite")
    old.executescript(
        "CREATE TABLE jobs (id TEXT PRIMARY KEY, report TEXT NOT NULL);"
        "CREATE TABLE traces (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
        " enter TEXT, exit TEXT);"
        "CREATE TABLE samples (trace TEXT NOT NULL, turn INTEGER NOT NULL, sample TEXT NOT NULL,"
        " PRIMARY KEY (trace, turn));"
    )
    old.close()
    kept = Traces(tmp_path)
    name = uuid.UUID(rolled_out(kept)).hex
    kept.mark_reported([name])
    assert [trace.id for trace in kept.unreported({name})] == [name]


def test_a_turn_that_was_sampled_again_replaces_the_one_before(kept: Traces) -> None:
    again = SAMPLE.model_copy(update={"output_token_ids": [3]})
    longer = SAMPLE.model_copy(update={"prompt_token_ids": [1, 3]})
    for sample in (SAMPLE, again, longer):
        kept.add(TRACE, sample)
    kept.exit(TRACE, DONE)
    (trajectory,) = resolve(kept, TRACE)
    assert trajectory.samples == [again, longer]


def test_a_trace_says_which_checkpoint_sampled_what_is_sent_inline(kept: Traces) -> None:
    kept.add(TRACE, SAMPLE.model_copy(update={"checkpoint": "arith-000003"}))
    kept.exit(TRACE, DONE)
    inline = TrajectoryPayload(samples=[SAMPLE], reward=1.0, trace_id=TRACE)
    own = SAMPLE.model_copy(update={"checkpoint": "arith-000002"})
    named = inline.model_copy(update={"samples": [own]})
    found = resolve(kept, TRACE, inline, named)
    names = ["arith-000003", "arith-000003", "arith-000002"]
    assert [one.samples[0].checkpoint for one in found] == names


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda kept: None, "unknown to this model's trainer"),
        (lambda kept: kept.add(TRACE, SAMPLE), "no exit report came"),
        (
            lambda kept: rolled_out(kept, left=TraceExit(reward=1.0, stop_reason="timeout")),
            "timed out",
        ),
        (
            lambda kept: rolled_out(kept, left=TraceExit(status="error", error="boom", reward=0.0)),
            "ended with status error: boom",
        ),
        (lambda kept: rolled_out(kept, left=TraceExit()), "no valid grade"),
        (
            lambda kept: rolled_out(
                kept, left=TraceExit(reward=0.0, evaluation_result={"isError": True})
            ),
            "no valid grade",
        ),
        (lambda kept: (kept.enter(TRACE, TraceEnter()), kept.exit(TRACE, DONE)), "has no tokens"),
    ],
)
def test_an_unfit_trace_is_refused_by_name(
    kept: Traces, prepare: Callable[[Traces], object], said: str
) -> None:
    prepare(kept)
    with pytest.raises(CommandError, match=said) as refused:
        resolve(kept, TrajectoryPayload(samples=[SAMPLE], reward=1.0), TRACE)
    assert refused.value.status == 422
    assert refused.value.problem.detail.startswith("inputs[1]: ")
    assert refused.value.problem.remedy


def test_inline_tokens_are_trained_as_the_gateway_drew_them_for_whatever_trace(
    kept: Traces,
) -> None:
    """A script that hands on tokens and log-probs alone, as by hand from HUD's samples."""
    cold = SAMPLE.model_copy(update={"output_logprobs": [-0.25]})
    kept.add(TRACE, SAMPLE.model_copy(update={"temperature": 1.0}))
    drawn = {"temperature": 0.7, "shifted_by": ["top_p 0.8"]}
    kept.add(str(uuid.UUID(int=3)), cold.model_copy(update=drawn))
    elsewhere = SAMPLE.model_copy(update={"output_token_ids": [9]})
    said = cold.model_copy(update={"temperature": 0.5})
    inline = TrajectoryPayload(samples=[SAMPLE, cold, elsewhere, said], reward=1.0)
    (found,) = resolve(kept, inline)
    drawn = [(sample.temperature, sample.shifted_by) for sample in found.samples]
    assert drawn == [(None, []), (0.7, ["top_p 0.8"]), (None, []), (0.5, [])]


def test_traces_of_two_groups_do_not_share_a_place(kept: Traces) -> None:
    names = [str(uuid.UUID(int=number)) for number in range(10, 14)]
    for name, group in zip(names, "aabb", strict=True):
        rolled_out(kept, name, group=group)
    assert len(resolve(kept, *names, group_size=2)) == 4
    a, b, c, d = names
    with pytest.raises(CommandError, match=r"inputs\[1\]: is of group b, and inputs\[0\] of"):
        resolve(kept, a, c, b, d, group_size=2)


def test_reports_are_kept(kept: Traces) -> None:
    kept.enter_job(JOB, JobReport(name="night", group=4))
    kept.enter(TRACE, TraceEnter(job_id=str(uuid.UUID(JOB)), task_slug="sum"))
    kept.exit(TRACE, TraceExit(reward=1.0, metadata={"seed": 7}))
    record = kept.record(TRACE)
    assert record is not None
    assert record.job == {"name": "night", "group": 4}
    assert record.enter == {"job_id": str(uuid.UUID(JOB)), "task_slug": "sum"}
    assert record.exit == {"status": "completed", "reward": 1.0, "metadata": {"seed": 7}}


def test_a_trace_ends_once(kept: Traces) -> None:
    rolled_out(kept)
    kept.exit(TRACE, DONE)
    with pytest.raises(CommandError, match="ended with another report"):
        kept.exit(TRACE, TraceExit(reward=1.0))
    with pytest.raises(CommandError, match="has ended"):
        kept.add(TRACE, SAMPLE)


def test_the_oldest_are_forgotten(kept: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_store, "TRACES_KEPT", 3)
    names = [str(uuid.UUID(int=number)) for number in range(1, 6)]
    samples = [
        SAMPLE.model_copy(update={"output_token_ids": [number], "temperature": 0.7})
        for number in range(5)
    ]
    for name, sample in zip(names, samples, strict=True):
        kept.add(name, sample)
        kept.exit(name, DONE)
    assert [kept.record(name) is not None for name in names] == [False, False, True, True, True]
    # How their samples were drawn goes with them.
    unsaid = [sample.model_copy(update={"temperature": None}) for sample in samples]
    (found,) = resolve(kept, TrajectoryPayload(samples=unsaid, reward=1.0))
    assert [sample.temperature for sample in found.samples] == [None, None, 0.7, 0.7, 0.7]


def test_no_traces_fill_the_volume(
    kept: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_store, "BYTES_KEPT", 400_000)
    monkeypatch.setattr(trace_store, "TRACE_BYTES", 200_000)
    monkeypatch.setattr(trace_store, "FORGOTTEN_AT_ONCE", 2)
    long = SAMPLE.model_copy(
        update={"output_token_ids": [7] * 1000, "output_logprobs": [-1.0] * 1000}
    )
    names = [str(uuid.UUID(int=number)) for number in range(1, 200)]
    for name in names:
        kept.add(name, long)
    sizes = (tmp_path / "traces.sqlite").stat().st_size
    assert sizes < 600_000
    found = [kept.record(name) is not None for name in names]
    # The newest are kept, and as many as fit.
    assert found[-1]
    assert 20 < sum(found) < 60
    assert found == sorted(found)
    # One alone is not let grow either.
    with pytest.raises(CommandError, match="TraceTooLarge"):
        for turn in range(100):
            kept.add(TRACE, long.model_copy(update={"prompt_token_ids": [turn]}))
    assert kept.record(names[-1]) is not None


def test_reports_of_jobs_are_bounded(kept: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_store, "JOBS_KEPT", 3)
    for number in range(10):
        kept.enter_job(uuid.UUID(int=number).hex, JobReport(name=f"job {number}"))
    # The last three are there for the traces that name them.
    shown = []
    for number in range(10):
        trace = str(uuid.UUID(int=100 + number))
        kept.enter(trace, TraceEnter(job_id=uuid.UUID(int=number).hex))
        record = kept.record(trace)
        shown.append(record is not None and record.job is not None)
    assert shown == [False] * 7 + [True] * 3
