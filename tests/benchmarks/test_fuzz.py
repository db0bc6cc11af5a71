"""Broken inputs: no death, no hang, no foreign exception, nothing wrong. And a harness that would tell.

The short form of ``python -m benchmarks.fuzz``.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fuzz import __main__ as command
from benchmarks.fuzz.case import Verdict
from benchmarks.fuzz.child import case_generator, load_kind
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.mutate import ODD_VALUES, break_bytes, break_tree, dump_json
from benchmarks.fuzz.runner import run_cases
from tests.benchmarks.planted_faults import ENDS, FILE, Planted

PLANTED = "tests.benchmarks.planted_faults:Planted"
COUNTS = {"images": 200, "manifests": 150, "checkpoints": 60, "outputs": 80, "configs": 60}


def planted(story: str) -> int:
    """The first index of a planted case."""
    indices = range(1000)
    return next(n for n in indices if case_generator(Planted.name, 0, n).choice(sorted(ENDS)) == story)


@pytest.mark.parametrize("what", KINDS)
def test_broken_inputs_do_no_harm(what: str, tmp_path: Path) -> None:
    campaign = run_cases(KINDS[what], range(COUNTS[what]), 0, tmp_path)
    report = command.report(campaign, what, 0, load_kind(KINDS[what]).limits)
    assert campaign.good, report
    # A campaign in which everything is refused, or nothing, has broken nothing.
    assert min(campaign.verdicts[Verdict.OK], campaign.verdicts[Verdict.REFUSED]) > COUNTS[what] // 20, report


def test_every_planted_fault_is_told(tmp_path: Path) -> None:
    indices = {story: planted(story) for story in ENDS}
    campaign = run_cases(PLANTED, indices.values(), 0, tmp_path)
    assert campaign.verdicts == Counter(ENDS.values())
    assert not campaign.good
    told = {one.index: (verdict, one) for (verdict, _), some in campaign.examples.items() for one in some}
    for story, index in indices.items():
        if ENDS[story].is_fault:
            verdict, example = told[index]
            assert verdict is ENDS[story], story
            assert example.kept is not None
            assert (example.kept / FILE).read_text() == story
    assert (Verdict.DEATH, "SIGSEGV") in campaign.causes
    assert (Verdict.DEATH, "exit code 3") in campaign.causes
    assert campaign.causes[Verdict.DEATH, "more than 100 MiB"] == 2


def test_a_hung_child_does_not_hold_the_others(tmp_path: Path) -> None:
    indices = [planted("sleeps"), *[planted("fine")] * 20]
    campaign = run_cases(PLANTED, indices, 0, tmp_path, jobs=2)
    assert campaign.verdicts == {Verdict.HANG: 1, Verdict.OK: 20}
    assert campaign.slowest[0].index == planted("sleeps")


def test_no_case_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    campaign = run_cases(PLANTED, [planted("fine")] * 1000, 0, tmp_path, minutes=0.0)
    assert (campaign.tried, campaign.good) == (0, False)


@pytest.mark.parametrize(("story", "code"), [("wrong", 1), ("fine", 0)])
def test_the_command(
    story: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "planted", PLANTED)
    assert command.main(["--what", "planted", "--only", str(planted(story))]) == code
    printed = capsys.readouterr().out
    assert f"--only {planted(story)}: {story}" in printed or code == 0
    files = Path(printed.strip().splitlines()[-1].removeprefix("its files: "))
    assert (files / FILE).read_text() == story


@pytest.mark.parametrize("what", KINDS)
def test_a_case_can_be_made_again(what: str, tmp_path: Path) -> None:
    made = []
    for time in ("first", "second"):
        shared, cases = tmp_path / time, tmp_path / "cases"
        shared.mkdir()
        kind = load_kind(KINDS[what])(shared)
        for index in range(12):
            (folder := cases / str(index)).mkdir(parents=True)
            kind.make(case_generator(what, 5, index), folder)
        paths = [path for path in cases.rglob("*") if path.is_file()]
        made.append({str(path.relative_to(cases)): path.read_bytes() for path in paths})
        shutil.rmtree(cases)
    assert made[0] == made[1]
    assert len(made[0]) >= 12


def test_broken_bytes_differ() -> None:
    data = bytes(range(200))
    broken = [break_bytes(data, random.Random(seed), other=b"other" * 9)[0] for seed in range(200)]
    assert sum(one != data for one in broken) > 190
    assert len(set(broken)) > 190


def test_a_broken_tree_leaves_the_tree_as_it_is() -> None:
    tree = {"a": [1, {"b": "c"}], "d": None}
    before = json.dumps(tree)
    changed = [break_tree(tree, random.Random(seed))[0] for seed in range(100)]
    assert json.dumps(tree) == before
    assert sum(repr(one) != repr(tree) for one in changed) > 90


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:20])
def test_odd_values_can_be_written(value: object) -> None:
    assert dump_json({"key": value}, random.Random(0)).startswith('{"key": ')
