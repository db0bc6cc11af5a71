"""Ready configs to start from: ``python -m jobs.config annotate_laptop > my.yaml``.

Without a name, the list of them. A name that ends in .schema.json is a JSON schema, with which editors that know the
YAML language server complete and check a config; the first line of each config says where it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import job_parser, typed
from jobs.ending import BAD_INPUT, OK, ends_in_order, say, say_end

_SCHEMA_LINE = re.compile(r"(?<=^# yaml-language-server: \$schema=)(?=[^/\s]+$)", re.MULTILINE)


@ends_in_order("nothing was printed")
def main(argv: Sequence[str] | None = None) -> int:
    """List them, or print one; returns an exit code."""
    parser = job_parser("config", __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the one to print (default: list them)")
    name = parser.parse_args(argv).name
    folder = _folder()
    if name is None:
        say(_listed(folder))
        return OK
    files = {key: path for path in folder.iterdir() for key in (path.name, path.name.removesuffix(".yaml"))}
    if name not in files:
        from pipeline.config.base import did_you_mean

        known = sorted(path.name.removesuffix(".yaml") for path in set(files.values()))
        advice = did_you_mean(name, known) or f"; there are: {', '.join(known)}"
        return say_end(BAD_INPUT, f"no ready config is called {name!r}{advice}")
    # A name alone would be looked for beside the user's copy.
    say(_SCHEMA_LINE.sub(f"{folder.as_uri()}/", files[name].read_text(encoding="utf-8")).rstrip())
    return OK


def _folder() -> Path:
    """In this package where it was installed from a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir())


def _listed(folder: Path) -> str:
    """A line for each, with the first sentence of the comment that it begins with."""
    about = {path.stem: _first_sentence(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))}
    schemas = {path.name: "JSON schema, for editors" for path in sorted(folder.glob("*.schema.json"))}
    width = max(map(len, [*about, *schemas]))
    lines = [f"{name:<{width}}  {said}" for name, said in [*about.items(), *schemas.items()]]
    return "\n".join([*lines, "", f"{typed('config')} NAME > my.yaml makes one your own."])


def _first_sentence(text: str) -> str:
    comment = [line.removeprefix("#").strip() for line in text.splitlines()[1:] if line.startswith("#")]
    return re.split(r"[.;:](?:\s|$)", " ".join(comment), maxsplit=1)[0]


if __name__ == "__main__":
    sys.exit(main())
