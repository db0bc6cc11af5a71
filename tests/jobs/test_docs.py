"""What the docs tell to type: command lines that the jobs take, and settings that the configs have."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from jobs.arguments import COMMANDS
from pipeline.annotate.config import AnnotateConfig
from pipeline.annotations.run_json import ImageCounts
from pipeline.config.base import Section
from pipeline.config.loading import load_config
from pipeline.evaluate.config import EvaluateConfig
from pipeline.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy/README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS: dict[str, tuple[type[Section], str]] = {
    "annotate": (AnnotateConfig, "annotate_nightly.yaml"),
    "evaluate": (EvaluateConfig, "evaluate.yaml"),
    "train": (TrainConfig, "train.yaml"),
}
SCHEMAS = [kind.model_json_schema() for kind, _ in CONFIGS.values()]
_SUFFIXES = {"csv", "html", "json", "parquet", "py", "txt", "yaml"}
_OTHERS = ("# prometheus.yml",)  # first lines of YAML that is none of ours


class Stopped(BaseException):
    """Before the arguments are parsed."""


def jobs_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Command lines in a text: the module of ``jobs/`` and its arguments."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="<>|&;\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words = list(lexer)
    for i, word in enumerate(words):
        rest = [*takewhile(lambda each: not set(each) <= set("<>|&;\n"), words[i + 1 :])]
        if word == "maskfleet" and rest and rest[0] in COMMANDS:
            yield COMMANDS[rest[0]].job, rest[1:]
        elif word == "-m" and rest and rest[0].startswith("jobs.") and (ROOT / "jobs" / f"{rest[0][5:]}.py").is_file():
            yield rest[0][5:], rest[1:]


@cache
def parser_of(job: str) -> argparse.ArgumentParser:
    """The one that a job's ``main`` makes."""
    stopping = mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True, side_effect=Stopped)
    with stopping as parse, pytest.raises(Stopped):
        importlib.import_module(f"jobs.{job}").main([])
    parser: argparse.ArgumentParser = parse.call_args.args[0]
    return parser


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def has(schema: dict[str, Any], keys: list[str], root: dict[str, Any]) -> bool:
    """Whether a JSON schema knows a setting of this path."""
    if not keys:
        return True
    if ref := schema.get("$ref"):
        return has(root["$defs"][ref.rpartition("/")[2]], keys, root)
    if any(has(each, keys, root) for each in schema.get("anyOf", [])):
        return True
    if (more := schema.get("additionalProperties")) not in (None, False):
        return more is True or has(more, keys[1:], root)
    there = schema.get("properties", {}).get(keys[0])
    return there is not None and has(there, keys[1:], root)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_commands_are_taken(self, page: Path) -> None:
        for block in blocks(page, "bash"):
            for job, words in jobs_of(block):
                if words == ["--help"]:
                    continue
                arguments = parser_of(job).parse_args(words)
                if job in CONFIGS:
                    kind, ready = CONFIGS[job]
                    named = ROOT / arguments.config
                    load_config(kind, named if named.is_file() else ROOT / "configs" / ready, arguments.set)

    def test_commands_within_lines_have_these_options(self, page: Path) -> None:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", text):
            if "maskfleet" not in code and "-m jobs." not in code:
                continue
            for job, words in jobs_of(re.sub(r"\n|\.\.\.|[][]", " ", code)):
                options = {word for word in words if word.startswith("--")} - {"--help"}
                assert options <= parser_of(job)._option_string_actions.keys(), code

    def test_settings_are_there(self, page: Path) -> None:
        sections = {name for schema in SCHEMAS for name in schema["properties"]}
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            path = re.match(r"(\w+(?:\.\w+)+)(?:$|: |=)", code)
            keys = path[1].split(".") if path else []
            is_of_report = len(keys) == 2 and keys[0] == "images" and keys[1] in {f.name for f in fields(ImageCounts)}
            if keys and keys[0] in sections and keys[-1] not in _SUFFIXES and not is_of_report:
                assert any(has(schema, keys, schema) for schema in SCHEMAS), code

    def test_yaml_is_a_config(self, page: Path) -> None:
        least = {"manifest": {"uri": "in"}, "model": {"checkpoint": "x"}, "output": {"uri": "out"}}
        for block in blocks(page, "yaml"):
            if block.startswith(_OTHERS):
                continue
            values = yaml.safe_load(block)
            AnnotateConfig.model_validate({**least, **{k: {**least.get(k, {}), **v} for k, v in values.items()}})
