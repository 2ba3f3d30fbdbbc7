"""Hooks of mkdocs: add the top-level pages, and rewrite links that are written for GitHub.

Links in README.md and docs/ are relative to the file, as GitHub requires. On the site, the
top-level files have other names, and links to source files lead to the repository.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPO = Path(__file__).parents[1]
TOP_LEVEL = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the top-level pages to the site."""
    for source, page in TOP_LEVEL.items():
        files.append(File.generated(config, page, abs_src_path=str(REPO / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Rewrite relative links for the site."""
    pages = {page: source for source, page in TOP_LEVEL.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(pages.get(here, f"docs/{here}"))

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        in_site = TOP_LEVEL.get(target) or target.removeprefix("docs/")
        if target in TOP_LEVEL or target.startswith("docs/"):
            return posixpath.relpath(in_site, posixpath.dirname(here) or ".")
        kind = "tree" if (REPO / target).is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{target}"

    return LINK.sub(rewrite, markdown)
