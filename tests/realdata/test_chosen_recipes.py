"""The recipe that is chosen for the real images."""

from pathlib import Path

import pytest

from defectseg.config import load_recipe
from defectseg.formats.data_import import ImportReport
from defectseg.train.choose import choose_recipe


@pytest.mark.parametrize(("folder", "name"), [("severstal", "severstal-small"), ("neu", "neu900")])
def test_real_images_get_the_documented_recipe(
    realdata: Path, neu: tuple[Path, ImportReport], folder: str, name: str
) -> None:
    recipe, why = choose_recipe({"severstal": realdata / "severstal", "neu": neu[0]}[folder], "cpu")
    assert recipe == load_recipe(name)
    assert why[0].startswith(f"Recipe {name},")
