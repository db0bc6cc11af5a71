"""Configs: the ready ones of ``configs/``, broken as text and as values, and settings of the command line.

A config that was not touched loads. What ``--set`` gives to a path or URI stands in the config as it was given, or is
refused. No message shows the password that some URIs hold.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from benchmarks.fuzz.case import ROOT, Limits, Wrong
from benchmarks.fuzz.mutate import break_bytes, break_tree, dump_json
from pipeline.annotate.config import AnnotateConfig
from pipeline.config.base import Section
from pipeline.config.loading import load_config
from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.export.run import read_selection
from pipeline.storage.uris import Uri, UriText
from pipeline.train.config import TrainConfig

FILE = "settings.yaml"
_SECRET = "hunter2-is-no-password"
_JOBS: dict[str, type[Section]] = {"annotate": AnnotateConfig, "evaluate": EvaluateConfig, "train": TrainConfig}
_URI_KEYS: dict[type[Section], tuple[str, ...]] = {
    AnnotateConfig: ("output.uri", "manifest.uri", "manifest.image_root", "model.checkpoint"),
    EvaluateConfig: ("output.uri", "predictions.uri", "ground_truth.uri"),
    TrainConfig: ("output.uri",),
}
_GIVEN = (
    "/photos/Trip #3",
    "/photos/Trip #3/b",
    "s3://bucket/a#b",
    "/photos/a: b",
    "/photos/2024-01-01",
    "/photos/- x",
    "/photos/ünïcode",
    "/photos/it's",
    "/photos/%20",
    "/photos/a?b",
    "007",
    "1e5",
    "yes",
    "@photos",
    "&photos",
    "*photos",
    "!photos",
    "photos, more",
)
_ODD_SETTINGS = (
    "=",
    "a",
    "output",
    "output=",
    "output=1",
    "output.uri",
    "output.uri.x=1",
    "..=1",
    "model.batch_size=1e3",
    "model.batch_size=true",
    "model.batch_size=[1",
    "model.batch_size=99999999999999999999",
    "manifest.carry=[a, a]",
    "seed=.nan",
    "output.uri=\x00",
    "x" * 5000 + "=1",
    "output.uri={a: 1}",
    "model=null",
    "output.uri=!!python/object/apply:os.getcwd []",
    "output.uri=&a [*a]",
    "manifest.uri=" + "[" * 3000,
)


@dataclass(frozen=True)
class ConfigCase:
    """A config to be loaded.

    Attributes:
        job: class of the config; ``None`` for a file of class thresholds.
        path: of the file.
        settings: of the command line.
        given: key and value of a URI that a setting gives.
        whole: whether it must load.
    """

    story: str
    job: type[Section] | None
    path: Path
    settings: tuple[str, ...] = ()
    given: tuple[str, str] | None = None
    whole: bool = False

    @property
    def names(self) -> Sequence[str]:
        """The file, or the setting."""
        return (self.path.name, *(f"--set {setting.partition('=')[0].strip()}" for setting in self.settings))

    def check(self) -> None:
        """See `Case`."""
        try:
            shown = self._load()
        except UserError as error:
            if self.whole:
                raise Wrong("a ready config is refused", str(error)) from None
            shown = str(error)
            if _SECRET not in shown:
                raise
        if _SECRET in shown:
            raise Wrong("a secret is shown", shown[:300])

    def _load(self) -> str:
        """The config as it would be written down."""
        if self.job is None:
            return repr(read_selection(UriText(str(self.path)), 0.0))
        config = load_config(self.job, self.path, self.settings)
        if self.given is not None:
            key, value = self.given
            found: Any = config
            for part in key.split("."):
                found = getattr(found, part)
            # Places are absolute when they are loaded; other paths stay as they are given.
            if found is None or found.secret_text not in (value, Uri(value).absolute().secret_text):
                raise Wrong("a setting is not what was given", f"{key}: {found} for {value}")
        return config.model_dump_json() + repr(config)


class Configs:
    """See `Kind`."""

    name: ClassVar[str] = "configs"
    limits: ClassVar[Limits] = Limits(seconds=10.0, memory_bytes=300 << 20)

    def __init__(self, folder: Path) -> None:
        self._texts = [(job_of(path), path) for path in sorted((ROOT / "configs").glob("*.yaml"))]

    def make(self, rng: random.Random, folder: Path) -> ConfigCase:
        """See `Kind`."""
        job, source = rng.choice(self._texts)
        text, path = source.read_text(), folder / FILE
        kind = rng.random()
        if kind < 0.05:
            path.write_text(text)
            return ConfigCase(f"{source.name}: whole", job, path, whole=True)
        if kind < 0.25:
            path.write_text(text)
            return _with_settings(job, source.name, path, rng)
        if kind < 0.30:
            content, story = _thresholds(rng)
            path.write_bytes(content)
            return ConfigCase(f"class thresholds: {story}", None, path)
        how = rng.choice((_bytes_broken, _bytes_broken, _tree_broken, _tree_broken, _line_changed, _expensive))
        content, story = how(text, rng)
        path.write_bytes(content)
        return ConfigCase(f"{source.name}: {story}", job, path)


def job_of(path: Path) -> type[Section]:
    """Whose config it is, as the schema in its first line says."""
    found = re.search(r"\$schema=(\w+)\.schema\.json", path.read_text())
    assert found, f"{path} names no schema"
    return _JOBS[found[1]]


def _with_settings(job: type[Section], name: str, path: Path, rng: random.Random) -> ConfigCase:
    key = rng.choice(_URI_KEYS[job])
    if rng.random() < 0.5:
        value = rng.choice(_GIVEN)
        return ConfigCase(f"{name} --set {key}={value}", job, path, (f"{key}={value}",), (key, value))
    setting = rng.choice((*_ODD_SETTINGS, f"{key}={_secret_uri(rng)}"))
    return ConfigCase(f"{name} --set {setting!r:.80}", job, path, (setting,))


def _secret_uri(rng: random.Random) -> str:
    return rng.choice(
        (
            f"s3://KEY:{_SECRET}@bucket/x",
            f"ftp://user:{_SECRET}@host/x",
            f"https://host/x?sig={_SECRET}",
            f" https://host/x?sig={_SECRET}",
            f"https:/host/x?sig={_SECRET}",
            f"//host/x?sig={_SECRET}",
            f"abfs://box@host/x?sig={_SECRET}",
            f"s3://bucket/x?secret={_SECRET}",
        )
    )


def _thresholds(rng: random.Random) -> tuple[bytes, str]:
    tree, story = break_tree({"person": 0.5, "bicycle": 0.25, "traffic light": 0.9}, rng)
    text = dump_json(tree, rng) if rng.random() < 0.5 else yaml.safe_dump(tree, allow_unicode=False)
    if rng.random() < 0.5:
        content, more = break_bytes(text.encode(errors="surrogatepass"), rng)
        return content, f"{story}; {more}"
    return text.encode(errors="surrogatepass"), story


def _bytes_broken(text: str, rng: random.Random) -> tuple[bytes, str]:
    return break_bytes(text.encode(), rng)


def _tree_broken(text: str, rng: random.Random) -> tuple[bytes, str]:
    tree = yaml.safe_load(text)
    stories = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        tree, story = break_tree(tree, rng)
        stories.append(story)
    if rng.random() < 0.15 and isinstance(tree, dict):
        tree["output"] = {"uri": _secret_uri(rng)}
        stories.append("a URI with a password")
    return dump_json(tree, rng).encode(), "; ".join(stories)  # JSON is YAML


def _line_changed(text: str, rng: random.Random) -> tuple[bytes, str]:
    """What text editors, other programs and people make of a file."""
    lines = text.splitlines()
    index = rng.choice([number for number, line in enumerate(lines) if ":" in line and not line.startswith("#")])
    key = lines[index].split(":")[0]
    new = rng.choice(
        (
            f"\t{lines[index]}",
            f" {lines[index]}",
            f"{lines[index]}\n{lines[index]}",
            f"{key}: [1, 2",
            f"{key}: {{a: 1, a: 2}}",
            f"{key}: 'open",
            f"{key}: !!python/object/apply:os.getcwd []",
            f"{key}: !!binary aGVsbG8=",
            f"{key}: !!timestamp 2024-01-01",
            f"{key}: !unknown x",
            f"{key}: 2024-01-01",
            f"{key}: 0o17",
            f"{key}: 1_000",
            f"{key}: 12:30:45",
            f"{key}: 1e400",
            f"{key}: .inf",
            f"{key}: .nan",
            f"{key}: ~",
            f"{key}: |\n    several\n    lines",
            f"{key}: &a [*a]",
            f"{key}: *nowhere",
            f"{key}: {{<<: {{uri: x}}}}",
            f"? [{key.strip()}]\n: 1",
            f"---\n{lines[index]}",
            f"%YAML 9.9\n---\n{lines[index]}",
            f"{key}: " + "9" * 5000,
            f"{key}: \ufeff\x07",
        )
    )
    lines[index] = new
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    end = rng.choice(("\n", "\n", "\r\n", "\r"))
    return end.join(lines).encode(encoding, errors="replace"), f"{new!r:.80} in line {index + 1}, {encoding}, {end!r}"


def _expensive(text: str, rng: random.Random) -> tuple[bytes, str]:
    name, bomb = rng.choice(_BOMBS)
    size = rng.choice((20, 200, 30_000))
    return (text + "\n" + bomb(size)).encode(), f"{name} of {size}"


def _aliases(size: int) -> str:
    levels = min(size, 30)
    return "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels))])


def _alias_maps(size: int) -> str:
    levels = min(size, 30)
    maps = (f"b{n}: &b{n} {{x: *b{n - 1}, y: *b{n - 1}}}" for n in range(1, levels))
    return "\n".join(["b0: &b0 {x: 1}", *maps])


def _merges(size: int) -> str:
    levels = min(size, 30)
    maps = (f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, levels))
    return "\n".join(["m0: &m0 {x: 1}", *maps])


_BOMBS: tuple[tuple[str, Callable[[int], str]], ...] = (
    ("aliases", _aliases),
    ("maps of aliases", _alias_maps),
    ("merged aliases", _merges),
    ("unknown keys", lambda size: "\n".join(f"unknown{n}: 1" for n in range(size))),
    ("unknown keys below", lambda size: "extra:\n" + "\n".join(f"  unknown{n}: 1" for n in range(size))),
    ("nested lists", lambda size: "nested: " + "[" * size + "]" * size),
    ("nested maps", lambda size: "nested: " + "{a: " * size + "1" + "}" * size),
    ("a long line", lambda size: "long: " + "x" * size * 100),
    ("anchors", lambda size: "\n".join(f"k{n}: &n{n} 1" for n in range(size))),
)
