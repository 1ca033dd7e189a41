"""A page without jinja2, whose import takes longer than an image does."""

import binascii
import hashlib
import re
from pathlib import Path


def plain_page(title: str, *, style: str, content: str, script: str) -> str:
    """Fill base.html.j2 with HTML (title and content), CSS and the only script that may run.

    The page shows pictures from beside it.
    """
    digest = binascii.b2a_base64(hashlib.sha256(script.encode()).digest(), newline=False).decode()
    policy = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
    blocks = {
        "policy": f"{policy}; script-src 'sha256-{digest}'",
        "style": style,
        "content": f"{content}\n<script>{script}</script>",
    }
    base = Path(__file__).with_name("base.html.j2").read_text(encoding="utf-8")
    base = base.replace("{{ title }}", title)
    return re.sub(r"{% block (\w+) %}.*?{% endblock %}", lambda block: blocks[block[1]], base)
