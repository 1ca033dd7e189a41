"""How Sphinx builds the documentation; scripts/docs calls it.

The source folder is the root of the project, so that README.md is a page and links between it and docs/ lead somewhere
both here and on GitHub.
"""

import re
from typing import Any

project = "defectseg"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*"]
html_theme = "furo"
html_title = "defectseg"
html_static_path = ["wide.css"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 4  # links to headings, spelled as on GitHub


def add_contents(app: Any, page: str, source: list[str]) -> None:
    """Make the list beside every page from the index: its headings, and the pages that it links below each."""
    if page == root_doc:
        for heading, text in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", source[0], flags=re.MULTILINE):
            links = re.findall(r"\[([^]]+)\]\(([\w./-]+\.md)\)", text)
            pages = "\n".join(f"{title[0].upper()}{title[1:]} <{path}>" for title, path in links)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{pages}\n```\n"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
