"""The disturbances. Each drives a job until it ends with exit code 0 and says what happened on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import psutil
import pyarrow.fs as pafs

from benchmarks.chaos import witness
from benchmarks.chaos.flaky_proxy import flaky_proxy
from benchmarks.chaos.hooks import hooked
from benchmarks.chaos.poison import DEADLY_TO_DECODE, DEADLY_TO_SEGMENT
from benchmarks.chaos.scene import ATTEMPT_TIMEOUT_S, ChaosWorld, Hung, Job, command_line, png
from benchmarks.chaos.verdict import KILLED, Rows, Verdict, judge, read_output
from pipeline.storage.lock.holder import Holder, read_holder
from pipeline.storage.uris import Uri
from testing.ray_nodes import RayNodes, ray_nodes
from testing.s3_server import s3_server

_SIGNAL_TIMEOUT_S = 120.0
_TAKEN_LEASE_S = 6.0
_NODES_LEASE_S = 30.0
# Beside output.write_interval_s: a block in the model, a block on its way, and a file that is being written.
_OUTAGE_INTERVAL_S, _ON_THE_WAY_S = 8.0, 20.0


@dataclass(frozen=True)
class Outcome:
    """How a run went.

    Attributes:
        verdict: what its output is like.
        attempts: how often the job was started.
        disturbed: whether anything was done to it: fast machines end before the first kill, slow ones start late.
        story: what was done to the job, for people.
        at_risk_s: the most work that ending a driver can have cost, in seconds: no file had appeared for so long.
    """

    verdict: Verdict
    attempts: int
    disturbed: bool
    story: str
    at_risk_s: float = 0.0


def run_kind(kind: str, scene: ChaosWorld, name: str, rng: random.Random, kills: int | None = None) -> Outcome:
    """One disturbed job, to its end.

    Args:
        kind: a key of `KINDS`.
        scene: with the images and what is expected of them.
        name: unused so far; its log and output are called so.
        rng: decides all that is random.
        kills: how many drivers, workers or nodes; a random few if not given.
    """
    try:
        return KINDS[kind](scene, name, rng, kills)
    except (OSError, RuntimeError) as error:  # a test that could not be carried out was not passed
        return Outcome(Verdict(0, 0, (f"not carried out: {type(error).__name__}: {error}",)), 0, False, "")


def _finish(job: Job, expected: Rows, disturb: Callable[[], tuple[bool, str]]) -> Outcome:
    """Disturb, then run until the job ends well, and judge.

    Args:
        job: one that was not started yet.
        expected: the rows that the output should hold, by image id.
        disturb: runs the job with something going on beside it; whether anything was done, and what.
    """
    try:
        try:
            disturbed, story = disturb()
            code = job.run_to_the_end()
        except Hung as hung:
            disturbed, story, code = True, str(hung), -1
        verdict = judge(*job.read(), expected, code)
    finally:
        left = job.clean_up()
    story += f"; {left} processes left over" if left else ""
    return Outcome(verdict, job.attempts, disturbed, story, job.at_risk_s)


def driver(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """SIGKILL to the driver, one to three times, at a random time or right after a random file."""
    job = Job(scene.folder, name, scene.images.as_uri())

    def kill(process: subprocess.Popen[bytes], deadline: float, files: int, pause_s: float) -> None:
        while process.poll() is None and time.monotonic() < deadline and job.files() < files:
            time.sleep(0.02)
        time.sleep(pause_s)
        job.remember(process.pid)
        job.interrupted()
        process.kill()

    def disturb() -> tuple[bool, str]:
        killed = []
        for _ in range(kills or rng.randint(1, 3)):
            by_time = rng.random() < 0.3
            deadline = time.monotonic() + (rng.uniform(0.5, 25) if by_time else 240)
            files = 10**6 if by_time else job.files() + rng.randint(1, 6)
            if job.run(partial(kill, deadline=deadline, files=files, pause_s=rng.uniform(0, 0.4))) == 0:
                break
            killed.append(f"at {job.files()} files")
        return bool(killed), f"{len(killed)} drivers killed: {', '.join(killed)}"

    return _finish(job, scene.expected, disturb)


def signals(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """SIGINT to the process group, as a terminal sends it, or SIGTERM to the driver, each after a random file."""
    job = Job(scene.folder, name, scene.images.as_uri(), settings={"output": {"write_interval_s": 0.5}})
    story: list[str] = []
    wrong: list[str] = []

    def send(process: subprocess.Popen[bytes]) -> None:
        files = job.files() + rng.randint(1, 3)
        while process.poll() is None and job.files() < files:
            time.sleep(0.02)
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        job.remember(process.pid)
        if process.poll() is not None:
            return
        job.interrupted()
        (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
        code = process.wait(_SIGNAL_TIMEOUT_S)
        story.append(f"{number.name} at {files} files")
        if (code, job.state()) not in ((128 + number, "stopped"), (0, "finished")):
            wrong.append(f"{number.name}: exit code {code}, run.json says {job.state()}")

    def disturb() -> tuple[bool, str]:
        for _ in range(kills or rng.randint(1, 3)):
            if job.run(send) == 0:
                break
        return bool(story), ", ".join(story)

    return _also(_finish(job, scene.expected, disturb), wrong)


def beside(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """A dry run and a run with ``--retry-failed`` beside a running job, each after a random file."""
    job = Job(scene.folder, name, scene.images.as_uri())
    wrong: list[str] = []
    story: list[str] = []

    def intrude(process: subprocess.Popen[bytes]) -> None:
        for argument, wanted in rng.sample([("--dry-run", 0), ("--retry-failed", 1)], 2)[:kills]:
            files = job.files() + 1
            while process.poll() is None and job.files() < files:
                time.sleep(0.02)
            if process.poll() is not None:
                return
            code, said = job.beside(argument)
            story.append(f"{argument} at {files} files")
            if process.poll() is None and code != wanted:  # else it found nobody at work
                wrong.append(f"{argument}: exit code {code}: {said.strip().splitlines()[-1:]}")

    def disturb() -> tuple[bool, str]:
        code = job.run(intrude)
        if code:
            wrong.append(f"the running job ended with {code}")
        return bool(story), ", ".join(story)

    return _also(_finish(job, scene.expected, disturb), wrong)


def takeover(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """Two starts at once; the one that got the output is stopped, a third takes over, and the stopped one wakes up."""
    job = Job(scene.folder, name, scene.images.as_uri(), settings={"output": {"lease_s": _TAKEN_LEASE_S}})
    whole = rng.random() < 0.5  # with its Ray, as when a virtual machine is paused
    wakes_late = rng.random() < 0.5
    wrong: list[str] = []
    story: list[str] = []
    logs = {who: scene.folder / f"{name}-{who}.log" for who in ("one", "other", "third")}
    running: dict[str, subprocess.Popen[bytes]] = {}

    def said(who: str) -> str:
        return logs[who].read_text(errors="replace").strip().splitlines()[-1]

    def ended(who: str, wanted: int, *words: str) -> None:
        code = running[who].wait(ATTEMPT_TIMEOUT_S)
        if code != wanted or not all(word in said(who) for word in words):
            wrong.append(f"{who}: exit code {code}, not {wanted} for {', '.join(words)}: {said(who)}")

    def has_taken_over(before: Holder | None) -> bool:
        now = read_holder(Uri(str(job.output)))
        return now is not None and before is not None and now.run_id != before.run_id

    def disturb() -> tuple[bool, str]:
        running.update({who: job.start(logs[who]) for who in ("one", "other")})
        _wait_for(lambda: any(process.poll() is not None for process in running.values()))
        loser, winner = sorted(running, key=lambda who: running[who].poll() is None)
        holder = read_holder(Uri(str(job.output)))
        ended(loser, 1, "LockHeld", holder.run_id if holder else "")
        process = running[winner]
        files = job.files() + rng.randint(1, 3)
        _wait_for(lambda: process.poll() is not None or job.files() >= files)
        members = [psutil.Process(process.pid), *(job.remember(process.pid) if whole else [])]
        if process.poll() is not None:
            return False, "the winner ended too early"
        job.interrupted()
        for member in members:
            member.suspend()
        story.append(f"stopped {'with its Ray ' if whole else ''}at {files} files")
        running["third"] = job.start(logs["third"])
        # A file more says nothing: what writes goes on where only its driver is stopped.
        _wait_for(lambda: running["third"].poll() is not None or (not wakes_late and has_taken_over(holder)))
        job.remember(running["third"].pid)
        before = job.part_files()
        story.append(f"woken at {len(before)}")
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.resume()
        # Ray may not survive such a sleep, and which of the two a driver sees first is chance.
        ended(winner, 1, *([] if whole else ["LockLost"]))
        ended("third", 0)
        job.exit_code = running["third"].returncode
        if gone := before - job.part_files():
            wrong.append(f"removed: {', '.join(sorted(gone))}")
        if job.state() != "finished":
            wrong.append(f"run.json says {job.state()}")
        return True, ", ".join(story)

    try:
        return _also(_finish(job, scene.expected, disturb), wrong)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _wait_for(happened: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + ATTEMPT_TIMEOUT_S
    while not happened():
        if time.monotonic() > give_up_at:
            raise Hung(f"nothing happened for {ATTEMPT_TIMEOUT_S:.0f} s")
        time.sleep(0.02)


def _also(outcome: Outcome, wrong: list[str]) -> Outcome:
    """With what was wrong on the way."""
    verdict = outcome.verdict
    return replace(outcome, verdict=replace(verdict, differences=(*verdict.differences, *wrong)))


def worker(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """SIGKILL to three to six of Ray's worker and actor processes, from the start or from the first file on."""
    actors = {"actors": rng.choice([1, 2]), "cpus_per_actor": 0.5}  # two of them fit on two cores
    job = Job(scene.folder, name, scene.images.as_uri(), settings={"resources": actors})
    killed: list[str] = []
    wanted = kills or rng.randint(3, 6)
    first_file = rng.choice([0, 1])

    def kill_some(process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None and job.files() < first_file:
            time.sleep(0.02)
        pause_s = rng.uniform(0.2, 2)
        while process.poll() is None and len(killed) < wanted:
            busy = job.workers(process.pid)
            if busy:
                time.sleep(pause_s)
                pause_s = rng.uniform(0.2, 2)
                victim = rng.choice(sorted(busy, key=lambda w: w.pid))
                title = command_line(victim)
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.append(title.removeprefix("ray::").strip() or "one that had just ended")
            time.sleep(0.1)

    def disturb() -> tuple[bool, str]:
        for _ in range(3):
            if job.run(kill_some) == 0 or killed:
                break  # otherwise it failed before there was anything to kill
        return bool(killed), f"killed {', '.join(killed) or 'none'}"

    return _finish(job, scene.expected, disturb)


def poison(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """Two images kill the process that decodes and the one that segments them, every time."""
    images = scene.folder / f"{name}-images"
    shutil.copytree(scene.images, images, copy_function=os.link)
    middle = rng.randrange(len(scene.expected) - 6)
    decode, segment = f"scene_{middle:04d}_deadly.jpg", f"scene_{rng.randrange(middle + 1):04d}_deadly.png"
    (images / decode).write_bytes((scene.images / "scene_0000.jpg").read_bytes() + DEADLY_TO_DECODE)
    (images / segment).write_bytes(png(*DEADLY_TO_SEGMENT))
    job = Job(scene.folder, name, images.as_uri(), environment=hooked(scene.folder / f"{name}-hooks", "poison"))
    failed = {"status": "failed", "error_code": KILLED, "detections": None}
    nothing = {"height": None, "width": None, "exif_orientation": None, "object_size": None}
    decoded = {"exif_orientation": scene.expected["scene_0000.jpg"]["exif_orientation"]}
    decoded["object_size"] = (images / segment).stat().st_size
    height, width = DEADLY_TO_SEGMENT
    expected = {
        **scene.expected,
        decode: {**failed, **nothing, "stage": "decode"},
        segment: {**failed, **decoded, "height": height, "width": width, "stage": "segment"},
    }
    outcome = _finish(job, expected, lambda: (True, f"{decode} and {segment} are deadly"))
    verdict = outcome.verdict
    # Nobody else killed anything, so nothing else may have been given up.
    innocent = tuple(f"{image_id}: {KILLED}" for image_id in verdict.killed)
    return replace(outcome, verdict=replace(verdict, differences=verdict.differences + innocent, killed=()))


def outage(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """SIGKILL to the driver and all of its Ray at once, where files are due by time alone: what the model did is lost
    for as long as `output.write_interval_s` says and what was on its way, and no longer."""
    seen = scene.folder / f"{name}-seen"
    seen.mkdir()
    environment = {**hooked(scene.folder / f"{name}-hooks", "witness"), witness.FOLDER_VARIABLE: str(seen)}
    output = {"images_per_file": 2048, "write_interval_s": _OUTAGE_INTERVAL_S}
    job = Job(scene.folder, name, scene.images.as_uri(), environment=environment, settings={"output": output})
    lost: list[float] = []

    def kill_all(process: subprocess.Popen[bytes], pause_s: float) -> None:
        _wait_for(lambda: process.poll() is not None or witness.has_begun(seen))
        time.sleep(pause_s)
        members = job.remember(process.pid)
        if process.poll() is not None:
            return
        killed_at = time.time()
        process.kill()
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(members, timeout=10)
        written = {row["image_id"] for row in job.read()[0]}
        oldest = witness.oldest_lost(seen, written)
        lost.append(0.0 if oldest is None else killed_at - oldest)

    def disturb() -> tuple[bool, str]:
        for _ in range(kills or rng.randint(1, 3)):
            if job.run(partial(kill_all, pause_s=rng.uniform(1, 2.5 * _OUTAGE_INTERVAL_S))) == 0:
                break
        job.at_risk_s = max(lost, default=0.0)
        return bool(lost), f"all killed {len(lost)} times, lost {', '.join(f'{s:.1f} s' for s in lost)} of the model"

    outcome = _finish(job, scene.expected, disturb)
    limit_s = _OUTAGE_INTERVAL_S + _ON_THE_WAY_S
    return _also(outcome, [f"lost {s:.1f} s of work, not at most {limit_s:g}" for s in lost if s > limit_s])


def node(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """A cluster of a head and two nodes with the CPUs; one is removed without warning, another is added, twice."""
    steps = [_Step("removed", lambda nodes: nodes.replace(rng.randrange(2)))]
    return _nodes(scene, name, rng, {"actors": 2}, steps * (kills or 2))


def drain(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """The same, but a warning comes up to 8 s before."""

    def warn_and_replace(nodes: RayNodes) -> None:
        index = rng.randrange(2)
        nodes.drain(index, rng.uniform(0, 8))
        nodes.replace(index)

    return _nodes(scene, name, rng, {"actors": 2}, [_Step("drained", warn_and_replace)] * (kills or 2))


def scale(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """A pool of one to three replicas on two nodes: a third comes, and then one goes and none comes for it."""
    steps = [_Step("added", RayNodes.add), _Step("removed", lambda nodes: nodes.remove(rng.randrange(3)))]
    return _nodes(scene, name, rng, {"actors": None, "min_actors": 1, "max_actors": 3}, steps[:kills])


class _Step(NamedTuple):
    done: str  # to a node
    act: Callable[[RayNodes], None]


def _nodes(
    scene: ChaosWorld, name: str, rng: random.Random, resources: Mapping[str, Any], steps: Sequence[_Step]
) -> Outcome:
    """A job on a cluster of a head and two nodes, to which the steps happen, each after some more files."""
    with ray_nodes(scene.folder / f"{name}-nodes.log") as nodes:
        job = Job(
            scene.folder,
            name,
            scene.images.as_uri(),
            environment={"RAY_ADDRESS": nodes.address},
            # The short lease of the others is for drivers that are killed; nodes that start leave no time to renew it.
            settings={"resources": resources, "output": {"lease_s": _NODES_LEASE_S}},
        )
        story: list[str] = []

        def go_through(process: subprocess.Popen[bytes]) -> None:
            for step in steps:
                files = job.files() + rng.randint(1, 4)
                while process.poll() is None and job.files() < files:
                    time.sleep(0.05)
                if process.poll() is not None:
                    return
                step.act(nodes)
                story.append(f"{step.done} at {files} files")

        def disturb() -> tuple[bool, str]:
            job.run(go_through)
            return bool(story), f"nodes: {', '.join(story)}"

        return _finish(job, scene.expected, disturb)


def s3(scene: ChaosWorld, name: str, rng: random.Random, kills: int | None) -> Outcome:
    """Images and output on S3, where a share of all requests goes wrong."""
    share = rng.choice([0.05, 0.1, 0.2])
    with s3_server() as server, flaky_proxy(server.endpoint, share, rng.randrange(10**6)) as proxy:
        server.create_bucket("chaos")
        for path in scene.images.iterdir():
            server.put("chaos", f"images/{path.name}", path.read_bytes())
        job = Job(
            scene.folder,
            name,
            "s3://chaos/images",
            "s3://chaos/output",
            environment={**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint},
            settings={"output": {"lease_s": 6.0}},
        )
        direct = pafs.S3FileSystem(endpoint_override=server.endpoint, region="us-east-1")
        job.read = lambda: read_output(direct, "chaos/output")  # type: ignore[method-assign]
        stumbles = proxy.requests

        def disturb() -> tuple[bool, str]:
            job.run_to_the_end()
            wrong = ", ".join(f"{count} {what}" for what, count in sorted(stumbles.items()) if what != "passed")
            return bool(wrong), f"{sum(stumbles.values())} requests: {wrong}"

        return _finish(job, scene.expected, disturb)


KINDS: dict[str, Callable[[ChaosWorld, str, random.Random, int | None], Outcome]] = {
    "driver": driver,
    "signals": signals,
    "beside": beside,
    "takeover": takeover,
    "outage": outage,
    "worker": worker,
    "node": node,
    "drain": drain,
    "scale": scale,
    "s3": s3,
    "poison": poison,
}
