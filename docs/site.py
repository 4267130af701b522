"""A hook of mkdocs: pages of the repository's root join the site, and links that leave docs/ lead to the repository.

Without `repo_url` what such a link names is text."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # pages of the root, and their names on the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "reporting.md",
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)$)", re.S | re.M)


def moved(target: str, source: Path, page: str, repository: str) -> str | None:
    """Where a link leads on the site; None: nowhere. source: the file that it stands in; page: its name on the site."""
    if re.match(r"[a-z]+:|#", target):
        return target
    path, hash_mark, anchor = target.partition("#")
    there = Path(os.path.normpath(source.parent / path)).relative_to(ROOT)
    name = PAGES.get(str(there))
    if name is None and there.is_relative_to("docs") and (ROOT / there).is_file() and there.suffix != ".py":
        name = str(there.relative_to("docs"))
    if name is None and not repository:
        return None
    if name is None:
        return f"{repository}/{'tree' if (ROOT / there).is_dir() else 'blob'}/main/{there}{hash_mark}{anchor}"
    return os.path.relpath(name, Path(page).parent) + hash_mark + anchor


def rewritten(text: str, source: Path, page: str, repository: str) -> str:
    """A page with links as the site needs them; code stays as it is."""
    parts = CODE.split(text)

    def link(match: re.Match[str]) -> str:
        target = moved(match[2], source, page, repository)
        return match[1] if target is None else f"[{match[1]}]({target})"

    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Adds the root's pages."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrites the links of each page."""
    name = page.file.src_uri
    source = next((ROOT / root for root, other in PAGES.items() if other == name), ROOT / "docs" / name)
    return rewritten(markdown, source, name, config["repo_url"])
