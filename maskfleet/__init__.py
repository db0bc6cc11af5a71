"""Instance masks for huge image collections: `load_model` to use a detector from Python, ``maskfleet`` in the shell.

Nothing is loaded before it is asked for: ``import maskfleet`` takes milliseconds, `load_model` brings torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.predict.model import load_model

    __version__: str

__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("maskfleet")
    if name == "load_model":
        import pipeline

        place = next(iter(getattr(pipeline, "__path__", [pipeline.__file__])))  # of a module: a file
        if Path(place).resolve() != Path(__file__).resolve().parents[1] / "pipeline":
            raise ImportError(f"a package of the name 'pipeline' hides maskfleet's: {place}; rename it")
        from pipeline.predict.model import load_model

        return load_model
    raise AttributeError(f"module 'maskfleet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
