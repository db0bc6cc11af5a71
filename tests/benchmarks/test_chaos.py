"""The job killed and resumed: nothing lost, nothing twice, content equal to what the stages give.

The short form of ``python -m benchmarks.chaos``.
"""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import witness
from benchmarks.chaos.flaky_proxy import flaky_proxy
from benchmarks.chaos.kinds import run_kind
from benchmarks.chaos.scene import ChaosWorld, make_scene
from benchmarks.chaos.verdict import judge

pytestmark = pytest.mark.timeout(900)
# A driver killed, one stopped, a worker killed, two deadly images: what every change must survive. Others take longer.
SLOW = ("beside", "takeover", "outage", "node", "drain", "scale", "s3")
KINDS = ["driver", "signals", "worker", "poison", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> ChaosWorld:
    return make_scene(tmp_path_factory.mktemp("chaos"), num_images=32)


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind: str, scene: ChaosWorld) -> None:
    outcome = run_kind(kind, scene, kind, random.Random(1), kills=1)
    verdict = outcome.verdict
    assert outcome.disturbed, outcome
    assert (verdict.losses, verdict.duplicates) == (0, 0), outcome
    assert verdict.differences == (), outcome
    assert len(verdict.killed) <= 1, outcome


def test_what_was_begun_and_not_written_is_lost(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('[10.0, ["a", "b"]]\n[12.0, ["c"]]\n')
    (tmp_path / "2.jsonl").write_text('[11.0, ["d"]]\n')
    assert witness.has_begun(tmp_path)
    assert witness.oldest_lost(tmp_path, {"a", "b", "c"}) == 11.0
    assert witness.oldest_lost(tmp_path, {"a", "b", "c"}) is None


def _row(**changes: Any) -> dict[str, Any]:
    detection = {
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "score": 0.5,
        "category_id": 1,
        "category_name": "ball",
        "area": 12.0,
        "segmentation": {"size": [48, 64], "counts": "abc"},
    }
    row = {"image_id": "a", "status": "annotated", "height": 48, "width": 64, "exif_orientation": None}
    row |= {"object_size": 900, "stage": None, "error_code": None, "detections": [detection]}
    for key, value in changes.items():
        (detection if key in detection else row)[key] = value
    return row


def _report(annotated: int, **failures: int) -> dict[str, Any]:
    images = {"manifest": 1, "annotated": annotated, "failed": sum(failures.values()), "deleted": 0}
    return {"images": images, "failures": failures}


def test_the_judge_passes_what_is_equal() -> None:
    moved = _row(bbox=[1.0001, 2.0, 3.0, 4.0], score=0.500001)
    assert judge([moved], _report(1), {"a": _row()}, exit_code=0).good


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [1.01, 2, 3, 4]},
        {"score": 0.501},
        {"segmentation": None},
        {"height": 1},
        {"object_size": 9},
        {"detections": []},
    ],
)
def test_the_judge_sees_other_content(changes: dict[str, Any]) -> None:
    assert len(judge([_row(**changes)], _report(1), {"a": _row()}, exit_code=0).differences) == 1


def test_the_judge_sees_losses_duplicates_and_open_books() -> None:
    lost = judge([], _report(0), {"a": _row()}, exit_code=0)
    assert (lost.losses, lost.duplicates, lost.differences) == (1, 0, ())
    twice = judge([_row(), _row()], _report(2), {"a": _row()}, exit_code=0)
    assert (twice.losses, twice.duplicates) == (0, 1)
    assert not judge([_row()], _report(0, not_found=1), {"a": _row()}, exit_code=0).good
    assert not judge([_row()], _report(1), {"a": _row()}, exit_code=1).good
    assert not judge([_row(image_id="b")], _report(1), {"a": _row()}, exit_code=0).good


def test_the_judge_counts_given_up_images_apart() -> None:
    given_up = _row(status="failed", stage="segment", error_code="process_killed", detections=None)
    verdict = judge([given_up], _report(0, process_killed=1), {"a": _row()}, exit_code=0)
    assert verdict.good
    assert verdict.killed == ("a",)
    assert not judge([given_up], _report(0, not_found=1), {"a": _row()}, exit_code=0).good


class _Echo(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.path)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _put(endpoint: str) -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request("PUT", "/a/b?c=d", body=b"some content")
        response = connection.getresponse()
        return response.status, response.getheader("ETag"), response.read()
    finally:
        connection.close()


def test_the_proxy_passes_requests_on(echo: str) -> None:
    with flaky_proxy(echo, share=0.0, seed=0) as proxy:
        assert _put(proxy.endpoint) == (200, "/a/b?c=d", b"some content")
        assert proxy.requests == {"passed": 1}


def test_the_proxy_stumbles_in_every_way(echo: str) -> None:
    seen = set()
    with flaky_proxy(echo, share=1.0, seed=0) as proxy:
        for _ in range(40):
            try:
                seen.add(_put(proxy.endpoint)[0])
            except (ConnectionResetError, http.client.IncompleteRead, http.client.RemoteDisconnected) as error:
                seen.add(type(error))
        assert len(proxy.requests) == 6
    assert seen >= {503, 500, 200, ConnectionResetError}
