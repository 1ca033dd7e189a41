"""HTML reports: each package that writes one has a template, which extends base.html.j2."""

from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2

from defectseg.pages.charts import bars


def render_page(room: str, filters: dict[str, Callable[..., Any]], /, **content: Any) -> str:
    """Render `report.html.j2` of a package.

    Args:
        room: the package, such as "defectseg.check".
        filters: for the template, besides "number", which groups digits, and "bars", see `charts.bars`.
        content: the variables of the template.
    """
    places = {"base.html.j2": "defectseg.pages", "report.html.j2": room}
    templates = {name: resources.files(at).joinpath(name).read_text(encoding="utf-8") for name, at in places.items()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:,}".format, "bars": bars, **filters}
    return environment.get_template("report.html.j2").render(**content)
