"""The real images, in DEFECTSEG_REALDATA or in `shared/data` beside the clone; tests skip without them."""

import os
from pathlib import Path

import pytest

from defectseg.formats.data_import import ImportReport, import_labels
from defectseg.formats.labels import Choices

NEU_CLASSES = ("inclusion", "patches", "scratches")


@pytest.fixture(scope="session")
def realdata() -> Path:
    path = Path(os.environ.get("DEFECTSEG_REALDATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    for name in ("severstal", "severstal-labels", "neu900"):
        if not (path / name).is_dir():
            pytest.skip(f"no real data at {path / name}")
    return path


@pytest.fixture(scope="session")
def neu(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImportReport]:
    """The data folder that neu900 becomes, and the report of the import."""
    out = tmp_path_factory.mktemp("neu") / "neu"
    return out, import_labels(realdata / "neu900", out, Choices(classes=NEU_CLASSES), link=True)


@pytest.fixture(scope="session")
def few(realdata: Path, neu: tuple[Path, ImportReport], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data folders of about a dozen images: every 12th of Severstal's, every 50th of NEU's."""
    folders = {}
    for name, root, step in (("severstal", realdata / "severstal", 12), ("neu", neu[0], 50)):
        image_ids = sorted(path.name for path in (root / "train_images").iterdir())[::step]
        out = folders[name] = tmp_path_factory.mktemp("few") / name
        (out / "train_images").mkdir(parents=True)
        for image_id in image_ids:
            (out / "train_images" / image_id).symlink_to(root / "train_images" / image_id)
        header, *rows = (root / "train.csv").read_text().splitlines()
        kept = [row for row in rows if row.startswith(tuple(image_ids))]
        (out / "train.csv").write_text("\n".join([header, *kept, ""]))
    return folders
