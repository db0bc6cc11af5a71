"""Which code made an output: with and without git."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline import provenance
from pipeline.provenance import PACKAGES, code_version, package_versions

ROOT = Path(provenance.__file__).resolve().parent.parent
COMMIT = "0123456789ab"


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    code_version.cache_clear()
    yield
    code_version.cache_clear()


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> str:
    """The package's version, whatever it is."""
    monkeypatch.setattr(provenance, "package_versions", lambda: {"maskfleet": "1.2.3"})
    return "1.2.3"


def fake_git(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> list[list[str]]:
    """Git that answers by its first argument."""
    calls: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        assert options["check"]
        return subprocess.CompletedProcess(command, 0, answers[" ".join(command[3:5])] + "\n")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


@pytest.mark.parametrize(
    ("status", "suffix"),
    [
        pytest.param("", "", id="clean"),
        pytest.param(" M pipeline/annotate/graph.py", "+changes", id="changed"),
    ],
)
def test_in_a_checkout(monkeypatch: pytest.MonkeyPatch, version: str, status: str, suffix: str) -> None:
    answers = {"rev-parse --show-toplevel": str(ROOT), "status --porcelain": status, "rev-parse --short=12": COMMIT}
    calls = fake_git(monkeypatch, answers)
    assert code_version() == f"{version}+{COMMIT}{suffix}"
    assert all(command[:3] == ["git", "-C", str(ROOT)] for command in calls)
    assert code_version() == f"{version}+{COMMIT}{suffix}"
    assert len(calls) == 3  # once per process


def test_inside_another_project_s_checkout(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A virtual environment in somebody's repository: its commit says nothing about this code."""
    fake_git(monkeypatch, {"rev-parse --show-toplevel": str(ROOT.parent)})
    assert code_version() == version


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(FileNotFoundError("git"), id="no git"),
        pytest.param(subprocess.CalledProcessError(128, ["git"]), id="no checkout"),
    ],
)
def test_without_git(monkeypatch: pytest.MonkeyPatch, version: str, error: Exception) -> None:
    def run(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert code_version() == version


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "package_versions", dict)
    fake_git(monkeypatch, {"rev-parse --show-toplevel": str(ROOT.parent)})
    assert code_version() == "unknown"


def test_here() -> None:
    assert code_version().split("+")[0] == metadata.version("maskfleet")


def test_package_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = package_versions()
    assert versions["torch"] == metadata.version("torch")
    assert versions["ray"] == metadata.version("ray")
    assert set(versions) <= set(PACKAGES)
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert package_versions() == {"torch": versions["torch"]}
