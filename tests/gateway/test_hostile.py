"""Hostile requests and hostile pods against the gateway's process: bounded, named, never a 500."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from dev.apiserver import ApiServer
from tests.gateway.hostile import BOMB, DEEP, MIB, Hostile, answered, gateway
from tests.gateway.test_futures import RETRIEVE, sample_of

from espalier.gateway.world.world import NamespacedName

TRACE = "0" * 32
COMPLETIONS = "/v1/completions"
TRAIN = "/v1/models/arith/train/forward-backward"
SAMPLE = "/api/v1/asample"
ROUTES = (COMPLETIONS, "/v2/models/fork", f"/v2/trace/{TRACE}/enter", TRAIN, SAMPLE)
# A process of 90 MiB that held any of these inflated, or read to its end, would grow by 200 MiB.
SMALL = 48 * MIB
PARSED = 160 * MIB


@pytest.fixture(scope="module")
def hostile(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    namespace = f"hostile-{uuid.uuid4().hex[:8]}"
    with gateway(apiserver, namespace, tmp_path_factory.mktemp("hostile") / "log") as running:
        assert ask(running, "hello")[0] == 200
        yield running


def ask(hostile: Hostile, prompt: str, **fields: object) -> tuple[int, bytes]:
    body = {"model": "arith", "prompt": prompt, **fields}
    return hostile.post(COMPLETIONS, json.dumps(body).encode())


def reason(path: str, body: bytes) -> str:
    """The reason in the form of the route: OpenAI's, or a Problem."""
    answer = json.loads(body)
    if "completions" in path:
        assert set(answer) == {"error"}
        return str(answer["error"]["code"])
    assert set(answer) == {"detail", "reason", "remedy"}
    return str(answer["reason"])


# --- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("who", ["trainer", "stranger"])
def test_a_compressed_body_is_a_415_and_is_not_inflated(
    hostile: Hostile, path: str, who: str
) -> None:
    before = hostile.mark()
    token = getattr(hostile, who)
    status, body = hostile.post(path, BOMB, "Content-Encoding: gzip", token=token)
    assert (status, reason(path, body)) == (415, "ContentEncodingNotTaken")
    assert hostile.peak() - before < SMALL


@pytest.mark.parametrize(
    ("path", "limit"), [(COMPLETIONS, 4 * MIB), (ROUTES[1], 64 * 1024), (ROUTES[2], MIB)]
)
def test_a_body_over_its_routes_limit_is_a_413(hostile: Hostile, path: str, limit: int) -> None:
    # Announced: refused before any of it comes.
    head = f"POST {path} HTTP/1.1\nHost: g\nAuthorization: Bearer {hostile.trainer}\n"
    status, body = hostile.send(f"{head}Content-Length: {limit + 1}\n".encode())
    assert (status, reason(path, body)) == (413, "BodyTooLarge")
    # Not announced: refused once so much has come.
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    chunked = f"{head}Transfer-Encoding: chunked\n".encode()
    status, body = hostile.send(chunked, chunk * (limit // 65536 + 1) + b"0\r\n\r\n")
    assert (status, reason(path, body)) == (413, "BodyTooLarge")


@pytest.mark.parametrize("path", ROUTES)
def test_rights_are_asked_before_the_body_comes(hostile: Hostile, path: str) -> None:
    head = f"POST {path} HTTP/1.1\nHost: g\nAuthorization: Bearer {hostile.stranger}\n"
    status, _ = hostile.send(f"{head}Content-Length: 60000\n".encode())
    # Who may train nothing is told that nothing keeps a report, and who may see nothing, that no
    # model is there.
    assert status == (404 if "trace" in path or "/train/" in path else 403)


def test_json_of_many_parts_is_refused_before_it_is_made(hostile: Hostile) -> None:
    before = hostile.mark()
    body = b'{"model":"arith","a":[' + b"[]," * (4 * MIB // 3 - 100) + b"0]}"
    status, answer = hostile.post(COMPLETIONS, body)
    assert (status, reason(COMPLETIONS, answer)) == (400, "InvalidJson")
    assert "500000 arrays and objects" in answer.decode()
    assert hostile.peak() - before < SMALL
    # As many as are taken.
    body = b'{"model":"nix","a":[' + b"{}," * 499_000 + b"0]}"
    status, answer = hostile.post(COMPLETIONS, body)
    assert (status, reason(COMPLETIONS, answer)) == (404, "ModelNotFound")
    assert hostile.peak() - before < PARSED


def test_prompts_that_a_few_bytes_stand_for_are_not_held_as_tokens(hostile: Hostile) -> None:
    before = hostile.mark()
    # Of a checkpoint that there is not yet, so that they wait for it: each is 19 KB here, 8 MiB as
    # text, and 60 MiB as tokens.
    model = NamespacedName(hostile.namespace, "arith")
    futures = [sample_of(model, 1_600_000, number, "arith-000099") for number in range(12)]
    bodies = [json.dumps({"request_id": future}).encode() for future in futures]
    assert max(map(len, bodies)) < 20_000
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(partial(hostile.post, RETRIEVE), bodies))
    assert all(status == 200 and b"arith-000099" in told for status, told in answers)
    assert hostile.peak() - before < 12 * 8 * MIB + PARSED


@pytest.mark.parametrize("path", ROUTES[:3])
def test_deep_json_is_a_400(hostile: Hostile, path: str) -> None:
    status, body = hostile.post(path, DEEP)
    assert (status, reason(path, body)) == (400, "InvalidJson")


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("Authorization: Bearer \xff", 401, "TokenMalformed"),
        ("Idempotency-Key: s/9223372036854775808", 400, "HeaderMalformed"),
        ("Idempotency-Key: s/" + "9" * 5000, 400, "HeaderMalformed"),
        ("Idempotency-Key: \xff/1", 400, "HeaderMalformed"),
        ("Idempotency-Key: 1", 400, "HeaderMalformed"),
        ("Idempotency-Key: s/1\nIdempotency-Key: s/2", 400, "HeaderMalformed"),
        ("Espalier-Term: " + "9" * 5000, 400, "HeaderMalformed"),
        ("Espalier-Term: \xff", 400, "HeaderMalformed"),
        ("Content-Type: \xff", 400, "HeaderMalformed"),
        ("X-Request-Id: \xff", 400, "HeaderMalformed"),
        ("Trace-Id: \xff", 400, "HeaderMalformed"),
        ("Content-Encoding: br, gzip", 415, "ContentEncodingNotTaken"),
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, TRAIN])
def test_a_malformed_header_is_named(
    hostile: Hostile, path: str, line: str, status: int, code: str
) -> None:
    given = "" if "Authorization" in line else f"Authorization: Bearer {hostile.trainer}\n"
    head = f"POST {path} HTTP/1.1\nHost: g\n{given}{line}\nContent-Length: 2\n"
    told, body = hostile.send(head.encode("latin-1"), b"{}")
    assert (told, reason(path, body)) == (status, code)
    assert line.partition(":")[0] in body.decode()


@pytest.mark.parametrize("query", ["offset=" + "9" * 5000, "limit=-1", "offset=%ff"])
def test_a_page_that_is_no_number_is_a_422(hostile: Hostile, query: str) -> None:
    head = f"GET /v2/models?{query} HTTP/1.1\nHost: g\nAuthorization: Bearer {hostile.trainer}\n"
    status, body = hostile.send(head.encode())
    assert (status, reason("", body)) == (422, "InvalidRequest")


@pytest.mark.parametrize("path", [b"/v1/models/\xff/train/state", b"/v1/runs/%ff/%00", b"/\xff"])
def test_a_path_of_any_bytes_is_a_client_error(hostile: Hostile, path: bytes) -> None:
    head = b"GET " + path + b" HTTP/1.1\nHost: g\nAuthorization: Bearer " + hostile.trainer.encode()
    status, _ = hostile.send(head + b"\n")
    assert 400 <= status < 500


# --- pods -------------------------------------------------------------------------------------


def test_a_pods_redirect_is_a_502_that_names_it_and_is_not_followed(hostile: Hostile) -> None:
    status, body = ask(hostile, "redirect")
    assert (status, reason(COMPLETIONS, body)) == (502, "PodRedirected")
    assert f"pod {hostile.namespace}/arith-" in body.decode()
    status, body = hostile.post(TRAIN, b"{}", "Idempotency-Key: redirect/1")
    assert (status, reason(TRAIN, body)) == (502, "PodRedirected")
    assert hostile.pod.visits == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("bomb", "PodAnswerCompressed"),
        ("announced", "PodAnswerTooLarge"),
        ("endless", "PodAnswerTooLarge"),
        ("nested", "PodAnswerUnknown"),
        ("deep", "PodAnswerUnknown"),
        ("list", "PodAnswerUnknown"),
    ],
)
def test_an_answer_that_no_rollout_gives_is_a_502_and_costs_no_more_than_its_limit(
    hostile: Hostile, answer: str, code: str
) -> None:
    before = hostile.mark()
    status, body = ask(hostile, answer)
    assert (status, reason(COMPLETIONS, body)) == (502, code)
    assert "/arith-" in body.decode()
    # One answer of 64 MiB, twice while it is made of its parts.
    assert hostile.peak() - before < 160 * MIB


def test_a_stream_without_an_end_of_its_event_is_broken_off(hostile: Hostile) -> None:
    before = hostile.mark()
    status, body = ask(hostile, "stream", stream=True)
    assert (status, reason(COMPLETIONS, body)) == (502, "PodAnswerUnknown")
    assert hostile.peak() - before < SMALL


@pytest.mark.parametrize("answer", ["bomb", "announced", "endless"])
def test_a_trainers_answer_is_bounded_too(hostile: Hostile, answer: str) -> None:
    before = hostile.mark()
    status, body = hostile.post(TRAIN, b"{}", f"Idempotency-Key: {answer}/1")
    assert status == 502
    assert reason(TRAIN, body) in ("PodAnswerCompressed", "PodAnswerTooLarge")
    assert hostile.peak() - before < 160 * MIB


def test_an_answer_before_the_body_has_ended_eats_no_bytes_of_the_next_call(
    hostile: Hostile,
) -> None:
    """Two callers: an early answer cuts the first one's body short, the second one's is whole."""
    head = f"POST {TRAIN} HTTP/1.1\nHost: g\nAuthorization: Bearer {hostile.trainer}\n"
    for _ in range(5):
        early = head + "Idempotency-Key: early/1\nContent-Length: 1000000\n"
        with socket.create_connection(("127.0.0.1", hostile.port), timeout=30) as first:
            first.sendall(early.replace("\n", "\r\n").encode() + b"\r\n" + b"{" * 1000)
            status, body = answered(first)
            assert (status, reason(TRAIN, body)) == (503, "Loading")
            for size in (2, 100_000):
                status, body = hostile.post(TRAIN, b"{" * size, "Idempotency-Key: length/2")
                assert (status, json.loads(body)) == (200, {"length": size})


def test_a_body_is_framed_by_what_comes_not_by_what_the_client_says(hostile: Hostile) -> None:
    # With both, the length has no meaning, and nothing of the second request is in the first's.
    head = (
        f"POST {TRAIN} HTTP/1.1\nHost: g\nAuthorization: Bearer {hostile.trainer}\n"
        "Idempotency-Key: length/1\nTransfer-Encoding: chunked\nContent-Length: 100\n"
    )
    status, body = hostile.send(head.encode(), b"2\r\n{}\r\n0\r\n\r\n")
    assert status == 400 or json.loads(body) == {"length": 2}
    status, body = hostile.post(TRAIN, b"{}", "Idempotency-Key: length/2")
    assert (status, json.loads(body)) == (200, {"length": 2})


def test_many_hostile_calls_at_once_leave_the_gateway_serving(hostile: Hostile) -> None:
    told: list[int] = []

    def one(number: int) -> None:
        prompt = ("bomb", "endless", "redirect", "nested")[number % 4]
        told.append(ask(hostile, prompt)[0])
        told.append(hostile.post(COMPLETIONS, BOMB, "Content-Encoding: gzip")[0])

    before = hostile.mark()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert set(told) <= {415, 502, 503}
    assert len(told) == 32
    assert ask(hostile, "hello")[0] == 200
    # The room for answers of a container without a limit, in a machine of more than 4 GiB.
    assert hostile.peak() - before < 1024 * MIB + PARSED


def test_what_was_refused_is_counted_by_reason_and_nothing_failed(hostile: Hostile) -> None:
    metrics = hostile.metrics()
    for name in ("ContentEncodingNotTaken", "BodyTooLarge", "HeaderMalformed", "TokenMalformed"):
        assert f'espalier_gateway_refused_requests_total{{reason="{name}"}}' in metrics
    for name in ("PodRedirected", "PodAnswerCompressed", "PodAnswerTooLarge", "PodAnswerUnknown"):
        assert f'espalier_gateway_pod_faults_total{{reason="{name}"}}' in metrics
    assert 'status="500"' not in metrics
    assert "request failed" not in Path(hostile.log).read_text()
