"""What of a trace may be trained on: the trajectory that it is, or why it is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.api.platform import TraceRecord
from espalier.api.wire.trajectory import TrajectoryPayload, TrajectorySample
from espalier.trainer.problems import invalid

INLINE = "leave its whole group out, or send a TrajectoryPayload with an explicit reward"


def trajectory(index: int, trace: str, record: TraceRecord | None) -> TrajectoryPayload:
    """The trajectory of a trace, the ``index``-th input; 422 if it cannot be trained on."""
    problem = _unfit(record)
    if problem is not None:
        raise invalid(f"inputs[{index}]", f"trace {trace} {problem[0]}", problem[1])
    assert record is not None
    assert record.exit is not None
    return TrajectoryPayload(
        samples=[TrajectorySample.model_validate(sample) for sample in record.samples],
        reward=record.exit["reward"],
        trace_id=trace,
    )


def with_checkpoint(item: TrajectoryPayload, record: TraceRecord | None) -> TrajectoryPayload:
    """An inline trajectory with its trace's checkpoint, if one checkpoint sampled all of it."""
    known = {sample.get("checkpoint") for sample in record.samples} if record is not None else set()
    if len(known) != 1 or any(sample.checkpoint is not None for sample in item.samples):
        return item
    (name,) = known
    samples = [sample.model_copy(update={"checkpoint": name}) for sample in item.samples]
    return item.model_copy(update={"samples": samples})


def _unfit(record: TraceRecord | None) -> tuple[str, str] | None:
    """Why a trace cannot be trained on, and the remedy; None if it can."""
    if record is None:
        return (
            "is unknown to this model's trainer",
            "sample it through the gateway with its Trace-Id header (what a gateway holds for a "
            "trainer that is not there goes when the gateway restarts), or "
            "send the tokens inline",
        )
    problem = _ungraded(record)
    if problem:
        return problem, INLINE
    if not record.samples:
        return (
            "has no tokens: nothing was sampled under its id through the gateway",
            "send the tokens inline",
        )
    return None


def _ungraded(record: TraceRecord) -> str:
    left = record.exit
    if left is None:
        return "has not ended: no exit report came for it"
    if left.get("stop_reason") == "timeout":
        error = f" ({left['error']})" if left.get("error") else ""
        return f"was timed out{error}, and such runs are never trained on implicitly"
    if left.get("status", "completed") != "completed":
        return f"ended with status {left['status']}: {left.get('error', 'no error given')}"
    if (left.get("evaluation_result") or {}).get("isError") or left.get("reward") is None:
        return "has no valid grade, so its reward is no training signal"
    return ""


def check_groups(records: Sequence[TraceRecord | None], group_size: int | None) -> None:
    """A group is ``group_size`` consecutive inputs: traces of two groups must not share one."""
    for index, record in enumerate(records):
        if group_size is None or record is None:
            continue
        first = index - index % group_size
        for other in records[first:index]:
            ours, theirs = _group(record), _group(other)
            if ours and theirs and ours != theirs:
                raise invalid(
                    f"inputs[{index}]",
                    f"is of group {ours}, and inputs[{first}] of group {theirs}: groups are "
                    f"{group_size} consecutive inputs",
                    "keep the trajectories of a group together, and send whole groups",
                )


def _group(record: TraceRecord | None) -> str:
    enter: Mapping[str, Any] = (record.enter if record is not None else None) or {}
    return str(enter.get("group_id") or "")
