"""What the site (``mkdocs.yml``) makes of Markdown that is written to be read in the repository.

README and CHANGELOG become pages. A link to a file outside of ``docs/`` becomes its plain text, as the site holds
no source; one that leads nowhere is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s:]*)(?P<anchor>#[^)\s]*)?\)")
_PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^)\s:]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie beside ``docs/``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_for_the_site((ROOT / source).read_text(), ROOT)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Of a page in ``docs/``."""
    return markdown if page.file.src_uri in PAGES.values() else _for_the_site(markdown, DOCS)


def _for_the_site(markdown: str, folder: Path) -> str:
    return _PICTURE.sub(lambda found: _picture(found, folder), _LINK.sub(lambda found: _link(found, folder), markdown))


def _link(found: re.Match[str], folder: Path) -> str:
    text, anchor = found["text"], found["anchor"] or ""
    if not found["path"]:
        return found[0]
    target = _target(found, folder)
    name = target.relative_to(ROOT).as_posix()
    if name in PAGES:
        return f"[{text}]({PAGES[name]}{anchor})"
    if target.is_relative_to(DOCS):
        return f"[{text}]({target.relative_to(DOCS).as_posix()}{anchor})"
    return text


def _picture(found: re.Match[str], folder: Path) -> str:
    return f"![{found['text']}]({_target(found, folder).relative_to(DOCS).as_posix()})"


def _target(found: re.Match[str], folder: Path) -> Path:
    target = Path(os.path.normpath(folder / found["path"]))
    if not target.exists():
        raise PluginError(f"a link of {folder.name} leads nowhere: {found[0]}")
    return target
