"""Local paths on a cluster of several nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.cluster import shared
from pipeline.cluster.address import ClusterError
from pipeline.cluster.shared import check_shared, lacking
from pipeline.storage.uris import Uri


def nodes(*cpus: float) -> list[dict[str, Any]]:
    return [
        {"Alive": True, "NodeID": f"id{i}", "NodeManagerAddress": f"10.0.0.{i}", "Resources": {"CPU": n} if n else {}}
        for i, n in enumerate(cpus)
    ]


def test_a_single_node_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(4.0))
    check_shared({"output.uri": Uri(str(tmp_path / "out"))}, {})
    assert not (tmp_path / "out").exists()


def test_the_one_node_that_works_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job may run on a head without CPUs."""
    asked = []
    monkeypatch.setattr(ray, "nodes", lambda: nodes(0.0, 4.0))
    monkeypatch.setattr(shared, "_ask", lambda node, *_: asked.append(node))
    check_shared({"output.uri": Uri(str(tmp_path / "out"))}, {})
    assert asked == ["id1"]


def test_object_stores_are_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(1.0, 1.0))
    check_shared({"output.uri": Uri("s3://b/out")}, {"manifest.image_root": None})


def test_every_node_is_asked_for_a_file_that_is_there_for_the_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def ask(node: str, address: str, probes: list[tuple[str, str, bool]], paths: dict[str, str]) -> None:
        asked.append(node)
        assert lacking(probes) == {}  # as a node that shares the folders
        gone = [(name, f"/elsewhere{path}", written) for name, path, written in probes]  # as one that does not
        assert lacking(gone) == {"output.uri": "does not see", "manifest.image_root": "does not see"}

    monkeypatch.setattr(ray, "nodes", lambda: nodes(1.0, 2.0))
    monkeypatch.setattr(shared, "_ask", ask)
    out = tmp_path / "out"
    check_shared({"output.uri": Uri(str(out))}, {"manifest.image_root": Uri(str(tmp_path)), "x": Uri("/not/here")})
    assert asked == ["id0", "id1"]
    assert list(out.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    tmp_path.chmod(0o555)
    assert lacking([("output.uri", str(tmp_path / "probe"), True)]) == {"output.uri": "may not write to"}


@pytest.mark.ray
def test_nodes_of_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ray_cluster: None) -> None:
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    monkeypatch.setattr(ray, "nodes", lambda: [node, node])
    check_shared({"output.uri": Uri(str(tmp_path / "out"))}, {"manifest.image_root": Uri(str(tmp_path))})
    missing = [("output.uri", str(tmp_path / "not here"), True)]
    with pytest.raises(ClusterError, match=r"output.uri: node [0-9.]+ of the cluster does not see /my/out"):
        shared._ask(node["NodeID"], node["NodeManagerAddress"], missing, {"output.uri": "/my/out"})
