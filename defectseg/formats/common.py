"""What imports and exports share: names, text files, pictures."""

from collections.abc import Iterable
from pathlib import Path

import cv2

from defectseg.errors import DataError
from defectseg.image.read import read_file

IGNORE_NAME = "ignore"  # the name of ClassId 255 in formats that know classes by name


def stem_of(image_id: str) -> str:
    """An ImageId without its suffix, the name by which masks and label files are paired with images."""
    return image_id.rpartition(".")[0]


def index_unique(files: Iterable[tuple[str, Path]], kind: str) -> dict[str, Path]:
    """Name -> file. Raises DataError where two files, called `kind` in the message, have one name."""
    file_of: dict[str, Path] = {}
    for name, path in files:
        other = file_of.setdefault(name, path)
        if other != path:
            raise DataError(
                f"{other} and {path.name}: two {kind} of one name; labels cannot tell them apart. Rename one of them, "
                "and its labels."
            )
    return file_of


def write_png(path: Path, pixels: cv2.typing.MatLike) -> None:
    """Write pixels as PNG, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(".png", pixels)
    assert encoded
    path.write_bytes(content.tobytes())


def place_image(source: Path, target: Path, *, link: bool) -> None:
    """Copy or link an image. Raises ImageError if it cannot be read, and OSError if it cannot be written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        target.write_bytes(read_file(source))
