from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from jobs import config_schema as schema_command
from pipeline.annotate.config import MAX_IMAGES_PER_BLOCK, AnnotateConfig, ManifestConfig
from pipeline.annotations.class_thresholds import read_class_thresholds
from pipeline.compare.limits import Limit
from pipeline.config.base import ConfigError, did_you_mean
from pipeline.config.loading import config_schema, load_config
from pipeline.model.categories import COCO_CATEGORIES
from pipeline.model.settings import TestSettings
from pipeline.storage.access import AccessPolicy
from pipeline.storage.fetch.rules import FetchSettings
from pipeline.storage.uris import Uri, UriText

CONFIGS = Path(__file__).parents[2] / "configs"
READY = sorted(CONFIGS.glob("annotate_*.yaml"))
COCO_NAMES = [category.name for category in COCO_CATEGORIES]
MINIMAL = "manifest:\n  uri: a.csv\nmodel:\n  checkpoint: m\noutput:\n  uri: out\n"


def config(**sections: dict[str, Any]) -> AnnotateConfig:
    values: dict[str, Any] = {"manifest": {"uri": "a.csv"}, "model": {"checkpoint": "m"}, "output": {"uri": "out"}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return AnnotateConfig.model_validate(values)


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_text(text: str, *overrides: str) -> AnnotateConfig:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return load_config(AnnotateConfig, path, overrides)

    return load_text


# --- the models ---


def test_defaults_are_those_of_the_parts() -> None:
    assert config().images.model_dump(include={*FetchSettings.model_fields}) == FetchSettings().model_dump()
    assert config().images.access_policy() == AccessPolicy(None)
    assert config().model.settings(TestSettings()) == TestSettings()


def test_settings_reach_the_parts() -> None:
    images = config(
        images={
            "attempt_timeout_s": 1,
            "deadline_s": 2,
            "max_attempts": 3,
            "max_object_bytes": 4,
            "fetch_concurrency": 5,
            "allowed_roots": ["s3://b/x", "/data"],
        }
    ).images
    assert isinstance(images, FetchSettings)
    assert (images.attempt_timeout_s, images.deadline_s, images.max_attempts) == (1, 2, 3)
    assert (images.max_object_bytes, images.fetch_concurrency) == (4, 5)
    assert images.access_policy() == AccessPolicy((Uri("s3://b/x"), Uri("/data")))
    model = {"short_side": 400, "long_side": 600, "score_threshold": 0.25, "max_detections": 7}
    assert config(model=model).model.settings(TestSettings(nms_iou=0.4)) == TestSettings(
        400, 600, score_threshold=0.25, max_detections=7, nms_iou=0.4
    )


def test_configs_are_frozen_and_pickle() -> None:
    made = config(model={"class_thresholds": {"dog": 0.5}})
    with pytest.raises(ValidationError):
        made.log_interval_s = 3.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301


def test_every_field_is_described() -> None:
    for name, definition in [("top", config_schema(AnnotateConfig)), *config_schema(AnnotateConfig)["$defs"].items()]:
        for key, field in definition["properties"].items():
            assert field.get("description") or "$ref" in field, f"{name}.{key}"


@pytest.mark.parametrize(
    ("resources", "expected"),
    [({}, None), ({"actors": 3}, (3, 3)), ({"min_actors": 1, "max_actors": 4}, (1, 4))],
    ids=["default", "fixed", "growing"],
)
def test_pool_size(resources: dict[str, Any], expected: tuple[int, int] | None) -> None:
    assert config(resources=resources).resources.actor_range == expected


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(1, 4), (8, 32), (16, 64), (32, 64), (64, 64)], ids=lambda value: str(value)
)
def test_blocks_hold_some_batches_and_have_a_limit(batch_size: int, expected: int) -> None:
    assert config(model={"batch_size": batch_size}).images_per_block == expected
    assert config(model={"batch_size": 1}, resources={"images_per_block": 5}).images_per_block == 5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"resources": {"actors": 1, "max_actors": 2}}, "either actors"),
        ({"resources": {"min_actors": 1}}, "belong together"),
        ({"resources": {"min_actors": 3, "max_actors": 2}}, "at most max_actors"),
        ({"resources": {"gpus_per_actor": 1.5}}, "less than or equal to 1"),
        ({"resources": {"images_per_block": MAX_IMAGES_PER_BLOCK + 1}}, "less than or equal to 64"),
        ({"resources": {"images_per_block": 7}}, "at least model.batch_size"),
        ({"images": {"attempt_timeout_s": 100.0}}, "at most deadline_s"),
        ({"images": {"max_pixels": True}}, "valid integer"),
        ({"images": {"decode_timeout_s": 0}}, "greater than 0"),
        ({"images": {"decode_timeout_s": 1e9}}, "less than or equal to 86400"),
        ({"images": {"max_bytes_at_once": 0}}, "greater than 0"),
        ({"model": {"timeout_s": float("nan")}}, "finite"),
        ({"model": {"compile_cache": "s3://b/compiled"}}, "local paths only"),
        ({"model": {"max_detections": 10_001}}, "less than or equal to 10000"),
        ({"model": {"short_side": 900, "long_side": 800}}, "at most long_side"),
        ({"model": {"score_threshold": float("nan")}}, "finite"),
        ({"model": {"score_threshold": 0.5, "class_thresholds": {"dog": 0.4}}}, "has no effect"),
        ({"model": {"class_thresholds": {"dog": 1.5}}}, "less than or equal to 1"),
        ({"manifest": {"carry": ["a", "a"]}}, "listed twice"),
        ({"manifest": {"carry": ["image_uri"]}}, "uri_column"),
        ({"manifest": {"uri_column": "image_id"}}, "three different columns"),
        ({"manifest": {"uri": "s3://"}}, "no bucket"),
        ({"output": {"uri": "https://host/out"}}, "nothing can be written"),
        ({"output": {"uri": "s3://b/out"}, "manifest": {"uri": "s3://b/out/m.csv"}}, "lies in output.uri"),
        ({"output": {"uri": "s3://b/out"}, "manifest": {"uri": "s3://b/out/"}}, "lies in output.uri"),
        ({"output": {"uri": "."}, "manifest": {"uri": "x/m.csv"}}, "lies in output.uri"),
        ({"output": {"uri": "data/out"}, "manifest": {"uri": "data", "format": "delta"}}, "lies in the table"),
        ({"output": {"uri": "out"}, "drift": {"against": "./out/"}}, "drift.against is output.uri: 'previous'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**sections)


@pytest.mark.parametrize(
    ("manifest", "output"),
    [
        ({"uri": "s3://b/m.parquet"}, "s3://b/m"),
        ({"uri": "s3://b/out2/m.parquet"}, "s3://b/out"),
        ({"uri": "s3://b/out/m.parquet"}, "s3://c/out"),
        ({"uri": "pictures", "format": "folder"}, "pictures/annotations"),
    ],
    ids=["beside", "same prefix of a name", "another bucket", "below a folder of pictures"],
)
def test_manifest_and_output_that_do_not_meet(manifest: dict[str, Any], output: str) -> None:
    config(manifest=manifest, output={"uri": output})


@pytest.mark.parametrize(
    ("manifest", "place", "is_read"),
    [
        ({"uri": "s3://b/a.csv"}, "s3://b/a.csv", False),
        ({"uri": "/a/m.parquet"}, "/a/m.parquet", True),
        ({"uri": "iceberg://prod/db.t"}, None, False),
        ({"uri": "/a/s.tar"}, "/a/s.tar", True),
        ({"uri": "/a/s.tgz"}, "/a/s.tgz", False),
        ({"uri": "/a/b/{train,val}/{00..99}.tar"}, "/a/b", True),
        ({"uri": "{00..99}.tar.gz"}, str(Path.cwd()), False),
        ({"uri": "s3://b/{00..99}", "format": "webdataset"}, "s3://b", True),
        ({"uri": "https://host/{00..99}.tar"}, None, True),
        ({"uri": "/{00..99}.tar"}, "/", True),
        ({"uri": "/a/{b}.csv"}, "/a/{b}.csv", False),
    ],
)
def test_where_a_manifest_lies_and_who_reads_it(manifest: dict[str, Any], place: str | None, is_read: bool) -> None:
    config = ManifestConfig.model_validate(manifest)
    assert config.place == (None if place is None else Uri(place))
    read = {"manifest.uri": config.place} if is_read else {}
    assert config.read_by_workers() == {**read, "manifest.image_root": None}


def test_thresholds_by_label() -> None:
    model = config(model={"class_thresholds": {"cat": 0.7}}).model
    assert model.label_thresholds(["dog", "cat"]) == (0.0, 0.7)
    with pytest.raises(ConfigError, match="no category 'cat'; did you mean 'cats'"):
        model.label_thresholds(["cats"])


def test_thresholds_below_the_checkpoints_own_are_refused() -> None:
    model = config(model={"class_thresholds": {"cat": 0.2}}).model
    assert model.settings(TestSettings(score_threshold=0.2))
    with pytest.raises(ConfigError, match="lower score_threshold"):
        model.settings(TestSettings(score_threshold=0.3))


def test_settings_that_contradict_the_checkpoint() -> None:
    with pytest.raises(ConfigError, match="set both"):
        config(model={"short_side": 1400}).model.settings(TestSettings())


# --- what identifies the output ---

CONTENT_CHANGES: list[dict[str, Any]] = [
    {"manifest": {"image_root": "images"}},
    {"manifest": {"id_column": "id"}},
    {"manifest": {"carry": ["split"]}},
    {"images": {"apply_exif": False}},
    {"model": {"precision": "bf16"}},
    {"model": {"score_threshold": 0.3}},
    {"model": {"short_side": 400}},
    {"model": {"class_thresholds": {"dog": 0.5}}},
]
OTHER_CHANGES: list[dict[str, Any]] = [
    {"manifest": {"uri": "b.csv"}},
    {"manifest": {"format": "csv"}},
    {"manifest": {"format": "inventory", "image_root": "s3://bucket/images"}},  # it goes on with a listing's output
    {"images": {"deadline_s": 1000}},
    {"images": {"max_pixels": 10}},
    {"images": {"max_object_bytes": 10}},
    {"images": {"fetch_concurrency": 3}},
    {"images": {"allowed_roots": ["/data"]}},
    {"model": {"checkpoint": "elsewhere/m"}},
    {"model": {"batch_size": 2}},
    {"model": {"compile": True, "compile_cache": "/shared/compiled", "cuda_graphs": False}},
    {"resources": {"actors": 7, "ray_address": "auto"}},
    {"output": {"uri": "elsewhere", "images_per_file": 5, "max_failed_fraction": 1, "compression_level": 9}},
]


@pytest.mark.parametrize("changes", CONTENT_CHANGES, ids=json.dumps)
def test_digest_changes_with_what_decides_rows(changes: dict[str, Any]) -> None:
    assert config(**changes).content_digest() != config().content_digest()


@pytest.mark.parametrize("changes", OTHER_CHANGES, ids=json.dumps)
def test_digest_ignores_what_does_not(changes: dict[str, Any]) -> None:
    assert config(**changes).content_digest() == config().content_digest()


def test_digest_is_stable() -> None:
    # Another value means that every existing output is refused: change it only together with the schema version.
    assert config().content_digest() == "c31082a84eb005071f68998739d57e860680e17f487b29ca1ce17839267bde12"


def test_digest_does_not_depend_on_spelling() -> None:
    one = config(manifest={"image_root": "s3://b/x/"}, model={"class_thresholds": {"a": 1, "b": 0.5}})
    two = config(manifest={"image_root": "s3://b/x"}, model={"class_thresholds": {"b": 0.5, "a": 1.0}})
    assert one.content_digest() == two.content_digest()


def test_digest_with_the_checkpoints_settings() -> None:
    base = TestSettings()
    written_out = config(model={"score_threshold": 0.05})
    assert written_out.content_digest() != config().content_digest()
    assert written_out.content_digest(base) == config().content_digest(base)
    assert config().content_digest(base) != config().content_digest(TestSettings(nms_iou=0.4))
    json.dumps(config().content(base))


# --- what is written down ---


def test_resolved_is_complete_and_loads_again() -> None:
    made = config(images={"allowed_roots": ["/data"]}, model={"class_thresholds": {"dog": 0.5}})
    assert AnnotateConfig.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made
    assert made.model_dump(mode="json")["images"]["max_attempts"] == FetchSettings().max_attempts


def test_secrets_stay_out_of_what_is_written_down() -> None:
    made = config(
        manifest={"uri": "https://host/m.csv?sig=SECRET", "image_root": "https://host/x?sig=SECRET"},
        images={"allowed_roots": ["https://host/?sig=SECRET"]},
        model={"checkpoint": "https://me:SECRET@host/m"},
        resources={"ray_address": "ray://me:SECRET@host:10001"},
        output={"uri": "gs://bucket/out?sig=SECRET"},
    )
    assert "SECRET" not in json.dumps(made.model_dump(mode="json"))
    assert "SECRET" not in json.dumps(made.content())
    assert made.model_dump(mode="json")["manifest"]["uri"] == "https://host/m.csv"


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://head:10001"])
def test_addresses_without_secrets_are_kept(address: str) -> None:
    assert config(resources={"ray_address": address}).model_dump(mode="json")["resources"]["ray_address"] == address


def test_secrets_stay_out_of_errors(load: Any) -> None:
    with pytest.raises(ValidationError) as error:
        config(manifest={"uri": "s3://me:SECRET@bucket/x"})
    assert "SECRET" not in str(error.value)
    for override in ("manifest.uri=s3://me:SECRET@bucket/x", "manifest.carry=SECRET", "manifest.typo=SECRET"):
        with pytest.raises(ConfigError) as loading_error:
            load(MINIMAL, override)
        assert "SECRET" not in str(loading_error.value)


# --- loading ---


def test_sections_may_be_left_empty(load: Any) -> None:
    assert load(MINIMAL + "images:\nresources:\n  # actors: 1\n") == config()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("resources.actors=3", ("resources", "actors"), 3),
        ("resources.gpus_per_actor=null", ("resources", "gpus_per_actor"), None),
        ("manifest.image_root=", ("manifest", "image_root"), None),
        ("manifest.carry=[a, b]", ("manifest", "carry"), ("a", "b")),
        ("output.max_failed_fraction=1e-3", ("output", "max_failed_fraction"), 0.001),
        ("output.max_failed_fraction=1", ("output", "max_failed_fraction"), 1.0),
        ("model.compile=true", ("model", "compile"), True),
        ("output.uri=s3://b/k=v/x", ("output", "uri"), "s3://b/k=v/x"),
        ("manifest.image_root=null", ("manifest", "image_root"), None),
        ("manifest.carry=['a #1', \"b: c\"]", ("manifest", "carry"), ("a #1", "b: c")),
        ('manifest.carry=["a", "b"]', ("manifest", "carry"), ("a", "b")),
        ("model.checkpoint=no", ("model", "checkpoint"), "no"),
        ("model.checkpoint=2024-01-31", ("model", "checkpoint"), "2024-01-31"),
        ("model.checkpoint=12:30", ("model", "checkpoint"), "12:30"),
        ("model.class_thresholds.traffic light=0.5", ("model", "class_thresholds"), {"traffic light": 0.5}),
        ("model.class_thresholds.Mr. X=0.5", ("model", "class_thresholds"), {"Mr. X": 0.5}),
        ("model.class_thresholds={dog: 0.5, 'no': 1}", ("model", "class_thresholds"), {"dog": 0.5, "no": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_overrides_are_read_as_the_setting_says(load: Any, override: str, path: tuple[str, str], value: Any) -> None:
    found = getattr(getattr(load(MINIMAL, override), path[0]), path[1])
    assert (found.secret_text if isinstance(found, UriText) else found) == value


# What YAML reads as something else, or as less.
ODD_TEXTS = [
    *(
        "/photos/Trip #3",
        "/photos/#3",
        "#",
        "/photos/a: b",
        "a:",
        ": b",
        "[1] pics",
        "[a",
        "{a}",
        "*.jpg",
        "&x y",
        "!x",
    ),
    *("%d", "@home", "`x`", "'q", "'5'", '"5"', "> x", "| x", "- a", "? a", "---", "...", "a - b", ", a", "= a"),
    *("null", "~", "no", "yes", "true", "on", "007", "0x1F", "1_000", "1e3", ".5", ".inf", "12:30", "2024-01-01"),
    *(" a ", "\ta", "a\\n", "\u00e9\u4e2d\U0001f600", "a\u00a0#b", "\ufeffa", "<<", "="),
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_text_is_taken_to_the_last_character(load: Any, text: str) -> None:
    assert load(MINIMAL, f"model.checkpoint={text}").model.checkpoint.secret_text == text
    assert load(MINIMAL, f"manifest.id_column={text}").manifest.id_column == text
    if "\t" not in text:  # control characters make no URI
        assert load(MINIMAL, f"manifest.uri={text}").manifest.uri.secret_text == os.path.abspath(text)
    if text != "null":
        assert load(MINIMAL, f"manifest.image_root={text}" if "\t" not in text else "log_interval_s=1")
        assert load(MINIMAL, f"resources.ray_address={text}").resources.ray_address.secret_text == text


@pytest.mark.parametrize(
    "override",
    [
        *("resources.actors=3 #4", "resources.actors=3 4", "resources.actors=0123", "resources.actors=1e3"),
        *("resources.actors='3'", "resources.actors=3,", "resources.actors=[3]", "resources.actors=3\n---\n4"),
        *("model.compile=yes", "model.compile=1", "model.compile=true #no", "output.max_failed_fraction=0.1 # a"),
        *("manifest.carry=[a, b #c]", "manifest.carry=[a, b] c", "manifest.carry=a", "manifest.carry=[1]"),
        *("images.allowed_roots=[/photos/Trip #3]", "images.allowed_roots=/photos", "images.max_pixels=" + "9" * 30),
        *("model.class_thresholds.dog=0.5 #x", "model.class_thresholds={dog: 0.5} x", "model.precision=fp32 "),
    ],
)
def test_what_is_left_over_of_a_value_is_refused(load: Any, override: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {override.partition('=')[0]}"):
        load(MINIMAL, override)


@pytest.mark.parametrize(("text", "said"), [('"/a b"', True), ("'/a b'", True), ("/a's", False), ('"', False)])
def test_quotes_around_a_text_are_kept_and_spoken_of(load: Any, caplog: Any, text: str, said: bool) -> None:
    assert load(MINIMAL, f"manifest.id_column={text}").manifest.id_column == text
    assert ("--set manifest.id_column: the quotes are taken as part of the text" in caplog.text) is said


@pytest.mark.parametrize(("text", "said"), [("/photos/Trip #3", True), ("'/photos/Trip #3'", False), ("a # b", False)])
def test_a_path_that_yaml_cuts_off_is_spoken_of(load: Any, caplog: Any, text: str, said: bool) -> None:
    load(MINIMAL.replace("a.csv", text))
    assert ("line 2: manifest.uri is '/photos/Trip'" in caplog.text) is said


ALIASES = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(15)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("\n".join(ALIASES), "line .*: more than 50,000 keys and values", id="aliases of aliases"),
        pytest.param("a: &a [*a]", "line 1: .*a stands in what it names", id="an alias of itself"),
        pytest.param("a: &a {b: *a}", "stands in what it names", id="a mapping in itself"),
        pytest.param("\n".join(f"k{i}: 1" for i in range(200_000)), "more than 50,000|larger than", id="keys"),
        pytest.param("a: [" + "1," * 200_000, "more than 50,000", id="a list"),
        pytest.param("a: " + "[" * 100_000, "more than 40 lists and mappings in each other", id="lists in lists"),
        pytest.param("a: " + "{a: " * 100_000, "more than 40 lists", id="mappings in mappings"),
        pytest.param("- " * 100_000, "more than 40 lists", id="lists in lists, block style"),
        pytest.param("#" * (3 << 20), "larger than 2 MiB", id="a large file"),
        pytest.param("a: " + "9" * 1_000_000, "beyond 64 bits", id="a long number"),
        pytest.param("a: -9223372036854775809", "beyond 64 bits", id="a number just too large"),
        pytest.param("a: !!int 1" + ":1" * 300_000, "not valid YAML", id="base 60"),
        pytest.param("a: !!float 1" + ":1" * 300_000, "not valid YAML", id="base 60 with a point"),
        pytest.param("a: !!bool maybe", "not valid YAML", id="no boolean"),
        pytest.param("a: !!set {b}", "not valid YAML", id="a set"),
        pytest.param("? [a, b]\n: 1", "a key must be text", id="a list as a key"),
        pytest.param("? {a: b}\n: 1", "a key must be text", id="a mapping as a key"),
        pytest.param("a: [{1: 2}]", "a key must be text", id="a number as a key in a list"),
        pytest.param("a: [{b: 1, b: 2}]", "a.0.b is set twice", id="twice in a list"),
        pytest.param("a: \0", "line 1: the character 0x0000", id="NUL"),
    ],
)
@pytest.mark.timeout(20)
def test_no_file_takes_the_loader_long(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(AnnotateConfig, path)
    assert len(str(error.value)) < 1000


def test_files_of_thresholds_have_the_same_bounds(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.yaml"
    path.write_text("\n".join(ALIASES))
    with pytest.raises(ConfigError, match="more than 50,000"):
        read_class_thresholds(UriText(str(path)))


def test_many_problems_are_counted_and_some_shown(load: Any) -> None:
    with pytest.raises(ConfigError, match="20,001 problems") as error:
        load(MINIMAL + "resource: 1\n" + "".join(f"k{i}: 1\n" for i in range(20_000)))
    lines = str(error.value).splitlines()
    assert lines[1].endswith("resource: no such setting; did you mean 'resources'?")
    assert "k18: no such setting; known here: manifest, images" in lines[-2]
    assert lines[-1].strip() == "and 19,981 more"


def test_a_long_word_is_shortened_and_not_compared(load: Any) -> None:
    with pytest.raises(ConfigError, match=r"k{200}\.\.\.: no such setting") as error:
        load(MINIMAL + f"? {'k' * 1_000_000}\n: 1\n")
    assert len(str(error.value)) < 1000


def test_aliases_are_understood(load: Any) -> None:
    made = load(MINIMAL.replace("a.csv", "a.csv\n  carry: &some [a, b]") + "images: {allowed_roots: *some}\n")
    assert made.manifest.carry == ("a", "b")
    assert made.images.allowed_roots == (Uri(os.path.abspath("a")), Uri(os.path.abspath("b")))


def test_relative_paths_are_those_of_the_folder_the_job_is_started_in(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = load(MINIMAL, "images.allowed_roots=[pictures, s3://b/x]")
    monkeypatch.chdir("/")
    assert (made.output.uri, made.manifest.uri) == (Uri(f"{tmp_path}/out"), Uri(f"{tmp_path}/a.csv"))
    assert made.images.allowed_roots == (Uri(f"{tmp_path}/pictures"), Uri("s3://b/x"))


def test_later_overrides_win(load: Any) -> None:
    made = load(MINIMAL, "model.class_thresholds.dog=0.5", "model.class_thresholds={cat: 1}", "log_interval_s=9")
    assert made.model.class_thresholds == {"cat": 1.0}
    assert made.log_interval_s == 9
    assert load(MINIMAL, "resources.actors=1", "resources.actors=2").resources.actors == 2


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("", [], ["c.yaml", "empty"]),
        ("# only a comment\n", [], ["empty"]),
        ("- a\n", [], ["'key: value'", "a list"]),
        ("a: [\n", [], ["line 2", "not valid YAML"]),
        ("a: !!python/object:os.system {}\n", [], ["not valid YAML"]),
        (MINIMAL + "---\nb: 1\n", [], ["another document"]),
        (MINIMAL + "model:\n  batch_size: 1\n", [], ["line 7", "model is set twice", "line 3"]),
        (MINIMAL + "images: {max_pixels: 1, max_pixels: 2}\n", [], ["line 7", "images.max_pixels is set twice"]),
        (MINIMAL + "1: 2\n", [], ["line 7", "quotes"]),
        (MINIMAL + "resource:\n  actors: 1\n", [], ["line 7: resource: no such setting", "'resources'"]),
        (MINIMAL + "resources:\n  actor: 1\n", [], ["line 8: resources.actor: no such setting", "'actors'"]),
        (MINIMAL + "resources:\n  zzz: 1\n", [], ["known here: ray_address, actors"]),
        (MINIMAL + "resources:\n  actors: two\n", [], ["line 8: resources.actors: must be a whole number", "text"]),
        (MINIMAL + "resources:\n  actors: '2'\n", [], ["resources.actors: must be a whole number", "text"]),
        (MINIMAL + "resources:\n  actors: true\n", [], ["resources.actors: must be a whole number", "a boolean"]),
        (MINIMAL + "resources: 3\n", [], ["line 7: resources: must be keys and values", "a whole number"]),
        (MINIMAL + "images:\n  max_pixels: 1_000\n", [], ["images.max_pixels: must be a whole number"]),
        ("manifest:\n  uri: a.csv\noutput:\n  uri: b\n", [], ["model is missing"]),
        ("manifest: {}\nmodel: {checkpoint: m}\noutput: {uri: b}\n", [], ["line 1: manifest.uri is missing"]),
        ("x: 1\n", [], ["4 problems", "manifest is missing", "x: no such setting"]),
        (MINIMAL, ["model.bach_size=1"], ["--set model.bach_size: no such setting", "'batch_size'"]),
        (MINIMAL, ["modell.batch_size=1"], ["--set modell.batch_size: modell: no such setting", "'model'"]),
        (MINIMAL, ["model.precision=fp8"], ["--set model.precision: must be 'fp32' or 'bf16'"]),
        (MINIMAL, ["model.precision=fp16"], ["--set model.precision: fp16 is no option any more", "Write bf16"]),
        (MINIMAL, ["manifest.carry=a"], ["--set manifest.carry: must be a list"]),
        (MINIMAL, ["output.uri="], ["--set output.uri: String should have at least 1 character"]),
        (MINIMAL, ["output.images_per_file=null"], ["--set output.images_per_file: must be a whole", "nothing"]),
        (MINIMAL, ["model.batch_size"], ["expected section.key=value"]),
        (MINIMAL, ["=1"], ["expected section.key=value"]),
        (MINIMAL, ["model..batch_size=1"], ["expected section.key=value"]),
        (MINIMAL, ["model.checkpoint.x=1"], ["model.checkpoint holds a value"]),
        (MINIMAL, ["manifest.carry=a: b: c"], ["--set manifest.carry: not valid YAML"]),
        (MINIMAL, ["resources.actors=1", "resources.max_actors=2"], ["either actors"]),
    ],
    ids=lambda value: None,
)
def test_errors_say_where_and_what(load: Any, text: str, overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(text, *overrides)
    for part in expected:
        assert part in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(AnnotateConfig, tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(AnnotateConfig, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(AnnotateConfig, tmp_path / "latin.yaml")


def test_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_config(AnnotateConfig, tmp_path / "c.yaml") == config()


def test_thresholds_file_is_read_and_overruled(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.yaml"
    path.write_text("dog: 0.5\ncat: 0.7\n")
    made = load(MINIMAL, f"model.class_thresholds_file={path}", "model.class_thresholds.dog=0.6")
    same = config(model={"class_thresholds": {"cat": 0.7, "dog": 0.6}})
    assert made == same
    assert made.content_digest() == same.content_digest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("dog: high\n", "dog: must be a number"), ("dog: 2\n", "dog: must be less"), ("", "empty"), ("- dog\n", "a list")],
    ids=["text", "above 1", "empty", "list"],
)
def test_thresholds_file_that_cannot_be_used(load: Any, tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "thresholds.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as error:
        load(MINIMAL, f"model.class_thresholds_file={path}")
    assert str(path) in str(error.value)
    assert "--set model.class_thresholds_file" in str(error.value)


def test_thresholds_file_hides_no_other_problem(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(MINIMAL, f"model.class_thresholds_file={tmp_path / 'none.yaml'}", "model.batch_size=0")
    assert "cannot be read" in str(error.value)
    assert "batch_size" in str(error.value)


@pytest.mark.parametrize("value", [[], False, ""])
def test_thresholds_of_the_wrong_type_beside_a_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "thresholds.yaml"
    path.write_text("dog: 0.5\n")
    with pytest.raises(ValidationError):
        config(model={"class_thresholds_file": str(path), "class_thresholds": value})


def test_thresholds_file_is_never_ignored(tmp_path: Path) -> None:
    path = tmp_path / "thresholds.yaml"
    with pytest.raises(ValidationError, match="cannot be read"):
        config(model={"class_thresholds_file": str(path)})
    path.write_text("dog: 0.5\n")
    assert config(model={"class_thresholds_file": UriText(str(path))}).model.class_thresholds == {"dog": 0.5}
    made = config(model={"class_thresholds_file": str(path)})
    assert made.content() == config(model={"class_thresholds": {"dog": 0.5}}).content()
    assert made.model.label_thresholds(["dog"]) == (0.5,)


def test_did_you_mean() -> None:
    assert did_you_mean("ulr", ["uri", "format"]) == "; did you mean 'uri'?"
    assert did_you_mean("zzz", ["uri"]) == ""


# --- the files in configs/ ---


def test_five_configs_are_ready() -> None:
    assert [path.stem.removeprefix("annotate_") for path in READY] == [
        "cluster_s3",
        "gpu_box",
        "laptop",
        "nightly",
        "pseudo_labels",
    ]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_configs_are_valid(path: Path) -> None:
    made = load_config(AnnotateConfig, path)
    made.model.settings(TestSettings())
    made.model.label_thresholds(COCO_NAMES)
    assert made.images_per_block >= 2 * made.model.batch_size


def test_settings_that_the_nightly_config_has_in_comments_are_valid(tmp_path: Path) -> None:
    """Whoever takes the sign away gets what the comment says."""
    text = (CONFIGS / "annotate_nightly.yaml").read_text()
    text, changed = re.subn(r"^( *)# ([a-z]+: [^ ].*)$", r"\1\2", text, flags=re.MULTILINE)
    assert changed == 4
    path = tmp_path / "nightly.yaml"
    path.write_text(text)
    made = load_config(AnnotateConfig, path)
    assert (made.manifest.compare, made.manifest.deleted) == ("etag", "mark")
    assert made.output.keeps_replaced
    assert made.drift is not None
    assert [Limit.parse(limit).figure for limit in made.drift.fail_if] == ["psi", "count_change"]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_editors_accept_ready_configs(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=annotate.schema.json"
    jsonschema.validate(yaml.safe_load(text), config_schema(AnnotateConfig))


def test_pseudo_labels_have_thresholds_by_class() -> None:
    assert load_config(AnnotateConfig, CONFIGS / "annotate_pseudo_labels.yaml").model.class_thresholds


def test_editors_refuse_what_loading_refuses() -> None:
    bad = {"manifest": {"uri": "a", "typo": 1}, "model": {"checkpoint": "m"}, "output": {"uri": "o"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, config_schema(AnnotateConfig))


@pytest.mark.parametrize("job", schema_command.JOBS)
def test_committed_schema_is_up_to_date(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema_command.main([job]) == 0
    committed = (CONFIGS / f"{job}.schema.json").read_text()
    assert capsys.readouterr().out == committed, f"python -m jobs.config_schema {job} > configs/{job}.schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(committed))
