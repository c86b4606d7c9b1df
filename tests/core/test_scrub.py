"""When a model's bytes are read, in which batches, and what becomes of what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.core.objects import LATER, NOW, checkpoint, condition, line, model

from espalier.api.checkpoint import Checkpoint, CheckpointStatus
from espalier.api.model.status import Scrub
from espalier.api.trainablemodel import TrainableModel
from espalier.core.checkpoints import checkpoint as checkpoints
from espalier.core.checkpoints import scrub
from espalier.core.checkpoints.checkpoint import Evidence
from espalier.core.checkpoints.scrub import ScrubView, decide
from espalier.core.checkpoints.scrub_report import Fault, Report, key_of
from espalier.core.conditions import find
from espalier.core.lineage.lineage import BASE_POINT
from espalier.core.lineage.lineage_index import grow
from espalier.core.manifests.scrubber import Handed
from espalier.core.pods.pods import JobState, Pod

MADE = {c.metadata.name: c for c in line("m", 3)}
NAMES = tuple(MADE)
BASE = {"uri": "volume://bases/x", "revision": "1", "digest": f"sha256:{'b' * 64}"}
ROTTEN = Fault(reason="BytesAltered", detail="adapter_model.safetensors is corrupt")
NEXT_WEEK = "2026-01-08T00:00:01Z"


def scrubbed(hours: int = 168, asked: str = "", **status: Any) -> TrainableModel:
    made = model(
        storage={
            "persistentVolumeClaim": {"claimName": "weights"},
            "scrub": {"intervalHours": hours},
        }
    )
    known = {"resolved": BASE} | ({"scrub": {"began": NOW, **status}} if status else {})
    annotations = {scrub.SCRUB: asked} if asked else {}
    return made.model_copy(
        update={
            "status": type(made.status).model_validate(known),
            "metadata": replace(made.metadata, annotations=annotations),
        }
    )


def ended(report: Report | None) -> dict[str, Any]:
    """A Job that has ended, and what it left."""
    facts = ("p", "uid-1", "scrubber", "", "", False, False, False, True)
    message = report.model_dump_json() if report is not None else "Killed"
    done = {"complete": report is not None, "failed": report is None, "terminating": False}
    job = JobState("uid", 0, **done)
    return {
        "job": job,
        "job_pods": [Pod(*facts, message=message)],
        "handed": Handed(NAMES, base=True),
    }


def saying(checkpoint: Checkpoint, reason: str) -> Checkpoint:
    status = {"conditions": [condition("Stalled", "True", reason)]}
    return checkpoint.model_copy(update={"status": CheckpointStatus.model_validate(status)})


def test_a_scrub_begins_when_its_time_has_come_and_reads_the_base_and_every_checkpoint() -> None:
    early = decide(ScrubView(scrubbed(), MADE), NOW)
    assert (early.job, early.again_seconds) == ("Keep", 168 * 3600)
    due = decide(ScrubView(scrubbed(), MADE), NEXT_WEEK)
    assert (due.job, due.base) == ("Create", True)
    assert [c.metadata.name for c in due.batch] == [*NAMES]


def test_scrubs_that_are_long_overdue_begin_one_after_the_other_each_within_an_interval() -> None:
    """As under the first version that scrubs: models of all ages, none of which was ever read."""
    old = [
        replace(scrubbed().metadata, uid=f"uid-{n}", creation_timestamp="2025-01-01T00:00:00Z")
        for n in range(200)
    ]
    models = [scrubbed().model_copy(update={"metadata": metadata}) for metadata in old]
    first = [decide(ScrubView(each, MADE), NOW) for each in models]
    assert sum(decision.job == "Create" for decision in first) < 200 / 12
    waits = [decision.again_seconds or 0.0 for decision in first]
    assert max(waits) <= 168 * 3600
    at_once = max(sum(start <= wait < start + 3600 for wait in waits) for start in waits if start)
    assert at_once < 10
    # Its moment is the same when it is asked again, also by another operator.
    later, wait = datetime.fromisoformat(NOW), max(waits)
    then = (later + timedelta(seconds=wait + 1)).isoformat()
    last = models[waits.index(wait)]
    assert decide(ScrubView(last, MADE), then).job == "Create"


def test_the_switch_turns_it_off_and_an_annotation_asks_for_one_all_the_same() -> None:
    assert decide(ScrubView(scrubbed(hours=0), MADE), NEXT_WEEK).job == "Keep"
    asked = decide(ScrubView(scrubbed(hours=0, asked="now"), MADE), NOW)
    assert asked.job == "Create"
    assert asked.status is not None
    under_way = ScrubView(scrubbed(hours=0), MADE, **ended(None))
    stopped = decide(under_way, NOW)
    assert (stopped.job, stopped.status, stopped.finding.reason) == ("Delete", None, "NotScrubbed")
    over = scrubbed(hours=0, asked="now", ended=NOW, requested="now")
    assert decide(ScrubView(over, MADE), NEXT_WEEK).job == "Keep"


def test_an_annotation_that_was_taken_off_asks_for_nothing_and_a_long_one_asks_once() -> None:
    over = scrubbed(ended=NOW, requested="now")
    assert decide(ScrubView(over, MADE), NOW).job == "Keep"
    begun = decide(ScrubView(scrubbed(asked="x" * 1000), MADE), NOW).status
    assert begun is not None
    done = scrubbed(asked="x" * 1000, ended=NOW, requested=begun.requested)
    assert decide(ScrubView(done, MADE), NOW).job == "Keep"


def test_a_pass_ends_while_training_goes_on() -> None:
    newer = checkpoint("m", 4, parent=NAMES[2], created=LATER)
    view = ScrubView(scrubbed(after=NAMES[2]), {**MADE, newer.metadata.name: newer})
    over = decide(view, NEXT_WEEK)
    assert over.status is not None
    assert (over.job, over.status.ended) == ("Keep", NEXT_WEEK)


def test_a_pass_goes_on_behind_what_was_recorded_and_ends_with_the_last() -> None:
    on = decide(ScrubView(scrubbed(after=NAMES[0]), MADE), NOW)
    assert (on.job, on.base) == ("Create", False)
    assert [c.metadata.name for c in on.batch] == [*NAMES[1:]]
    over = decide(ScrubView(scrubbed(after=NAMES[2]), MADE), NOW)
    assert over.status is not None
    assert (over.job, over.status.ended, over.finding.status) == ("Keep", NOW, "True")


def test_what_was_found_is_on_record_before_the_job_goes() -> None:
    bad = MADE[NAMES[1]]
    report = Report(checked=2, read_bytes=7, rotten={key_of(bad.spec.digest): ROTTEN})
    first = decide(ScrubView(scrubbed(), MADE, **ended(report)), NOW)
    assert (first.job, first.unsettled) == ("Keep", [NAMES[1]])
    told = {**MADE, NAMES[1]: saying(bad, "BytesAltered")}
    then = decide(ScrubView(scrubbed(), told, **ended(report)), NOW)
    assert (then.job, then.read_bytes) == ("Delete", 7)
    assert then.status is not None
    # The report was full after two: the third is the next Job's.
    assert (then.status.after, then.status.rotten) == (NAMES[1], [NAMES[1]])
    assert (then.finding.status, then.finding.reason) == ("False", "CheckpointsRotten")
    assert NAMES[1] in then.finding.message


def test_what_a_pass_found_stays_until_the_next_has_read_it_again() -> None:
    found = {"ended": NOW, "rotten": [NAMES[2]], "rotten_count": 1, "rotten_base": "corrupt"}
    told = {**MADE, NAMES[2]: saying(MADE[NAMES[2]], "BytesAltered")}
    begun = decide(ScrubView(scrubbed(**found), told), NEXT_WEEK)
    assert begun.status is not None
    assert (begun.status.rotten, begun.status.rotten_base) == ([NAMES[2]], "corrupt")
    assert begun.finding.status == "False"

    def after(status: Scrub, known: dict[str, Checkpoint], checked: int) -> Scrub:
        """The status once a batch that found nothing is on record."""
        model = scrubbed().model_copy(
            update={"status": scrubbed().status.model_copy(update={"scrub": status})}
        )
        report = ended(Report(checked=checked, read_bytes=7))
        recorded = decide(ScrubView(model, known, **report), NEXT_WEEK).status
        assert recorded is not None
        return recorded

    half = after(begun.status, told, 2)
    assert (half.rotten, half.rotten_count, half.rotten_base) == ([NAMES[2]], 1, None)
    # Its condition is taken back before the batch is recorded.
    whole = after(begun.status, MADE, 3)
    assert (whole.rotten, whole.rotten_count) == ([], 0)
    # One that was deleted is rotten no more.
    gone = {name: c for name, c in told.items() if name != NAMES[2]}
    again = decide(ScrubView(scrubbed(**found), gone), NEXT_WEEK).status
    assert again is not None
    assert again.rotten_count == 0


def test_a_batch_is_recorded_once_however_long_its_job_is_seen() -> None:
    report = Report(checked=3, read_bytes=7)
    first = decide(ScrubView(scrubbed(), MADE, **ended(report)), NOW)
    assert first.status is not None
    recorded = scrubbed().model_copy(
        update={"status": scrubbed().status.model_copy(update={"scrub": first.status})}
    )
    again = decide(ScrubView(recorded, MADE, **ended(report)), NOW)
    assert (again.status, again.job, again.read_bytes) == (first.status, "Delete", 0)


def test_the_report_of_a_job_that_is_complete_is_waited_for_and_not_for_ever() -> None:
    job = JobState("uid", 0, complete=True, failed=False, terminating=False, completed=NOW)
    view = ScrubView(scrubbed(), MADE, job=job, handed=Handed(NAMES, base=True))
    early = decide(view, NOW)
    assert (early.job, early.finding.reason) == ("Keep", "Scrubbing")
    assert early.again_seconds is not None
    late = decide(view, NEXT_WEEK)
    assert (late.job, late.finding.reason) == ("Delete", "ScrubFailed")


def test_a_rotten_base_is_named_with_the_remedy() -> None:
    report = Report(checked=3, read_bytes=7, base="model.safetensors is corrupt")
    found = decide(ScrubView(scrubbed(), MADE, **ended(report)), NOW).finding
    assert (found.status, found.reason) == ("False", "BaseRotten")
    assert "importer Job" in found.message


def test_a_job_that_fails_is_tried_again_after_a_while_and_says_why() -> None:
    failed = decide(ScrubView(scrubbed(), MADE, **ended(None)), NOW)
    assert (failed.job, failed.finding.reason) == ("Delete", "ScrubFailed")
    assert isinstance(failed.status, Scrub)
    waiting = scrubbed().model_copy(
        update={"status": scrubbed().status.model_copy(update={"scrub": failed.status})}
    )
    assert decide(ScrubView(waiting, MADE), NOW).job == "Keep"
    assert decide(ScrubView(waiting, MADE), NEXT_WEEK).job == "Create"


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(), "BytesAltered"),
        # What it holds may be older than the rot.
        (Evidence(verified=True), "BytesAltered"),
        (Evidence(sound=True), "Committed"),
    ],
)
def test_only_a_scrub_takes_back_what_a_scrub_found(evidence: Evidence, reason: str) -> None:
    told = saying(MADE[NAMES[0]], "BytesAltered")
    status = checkpoints.decide(told, [], grow([told], BASE_POINT), NOW, evidence)
    ready = find(status.conditions, "Ready")
    assert ready is not None
    assert ready.reason == reason


def test_a_full_report_of_the_longest_details_fits_into_a_termination_message() -> None:
    worst = {f"{n:012d}": Fault(reason="BytesAltered", detail="x" * 160) for n in range(12)}
    report = Report(checked=200, read_bytes=1 << 60, base="x" * 160, rotten=worst)
    assert len(json.dumps(report.model_dump())) <= 4096
