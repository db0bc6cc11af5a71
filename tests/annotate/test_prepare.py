from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.annotate.config import AnnotateConfig
from pipeline.annotate.prepare import make_identity
from pipeline.annotations.class_thresholds import Selection
from pipeline.annotations.ledger import OutputStore
from pipeline.annotations.reader import open_source
from pipeline.annotations.run_json import RunJson, RunState
from pipeline.export.run import Export, export
from pipeline.model.files.checkpoints import load_checkpoint
from pipeline.storage.uris import Uri
from tests.export.export_cases import CATEGORIES, MASKS, Picture, table_of

TRAINED = Path(__file__).parents[2] / "jobs" / "demo_model.safetensors"  # as the train job has written it


def test_a_model_of_our_own_training_is_called_by_the_file_that_the_config_names(tmp_path: Path) -> None:
    shutil.copy(TRAINED, tmp_path / "my best.safetensors")
    out = Uri(str(tmp_path / "out"))
    config = AnnotateConfig.model_validate(
        {
            "manifest": {"uri": str(tmp_path)},
            "model": {"checkpoint": str(tmp_path / "my best.safetensors")},
            "output": {"uri": str(out)},
        }
    )
    checkpoint = load_checkpoint(tmp_path / "my best.safetensors")
    assert "file" not in checkpoint.source
    identity = make_identity(config, checkpoint, "run")
    assert identity.model_name == "custom (my best.safetensors)"
    OutputStore(out).write_rows(table_of([Picture(1, [MASKS["full"]])]), identity)
    RunJson(state=RunState.FINISHED, categories=CATEGORIES).write(out)
    assert open_source(out).provenance["model"] == identity.model_name
    for format in ("coco", "cvat", "label-studio"):
        export(Export(out, format, Uri(str(tmp_path / format)), Selection()))
        files = [tmp_path / format] if (tmp_path / format).is_file() else (tmp_path / format).rglob("*")
        text = "".join(file.read_text("utf-8") for file in files if file.is_file())
        assert json.dumps(identity.model_name)[1:-1] in text


def test_a_converted_model_is_called_by_the_file_that_was_converted(tmp_path: Path) -> None:
    """Whose name people know it by."""
    config = AnnotateConfig.model_validate(
        {"manifest": {"uri": "a.csv"}, "model": {"checkpoint": "a.safetensors"}, "output": {"uri": str(tmp_path)}}
    )
    checkpoint = load_checkpoint(TRAINED)
    checkpoint.source["file"] = "cascade.pth"
    assert make_identity(config, checkpoint, "run").model_name == "custom (cascade.pth)"
