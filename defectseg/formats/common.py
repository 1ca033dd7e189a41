"""What imports and exports share: names, text files, pictures."""

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import cv2

from defectseg.errors import DataError, LabelError
from defectseg.files import open_regular

_XML_ENCODING = re.compile(rb"""<\?xml [^>]*encoding=["']([A-Za-z][\w.-]*)""", re.ASCII)
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


def read_text(path: Path, expected: str) -> str:
    """UTF-8 text, with or without a byte-order mark, or XML in the encoding that it declares.

    Raises LabelError, which says what was expected.
    """
    try:
        with open_regular(path) as handle:
            content = handle.read()
        with suppress(UnicodeDecodeError):  # UTF-8 that declares another encoding is common, too
            return content.decode("utf-8-sig")
        declared = _XML_ENCODING.match(content)
        return content.decode(declared[1].decode("ascii") if declared else "utf-8")
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (UnicodeDecodeError, LookupError) as error:
        raise LabelError(f"{path}: not UTF-8 text; {expected}. Save it as UTF-8, or unpack an archive.") from error


def write_png(path: Path, pixels: cv2.typing.MatLike) -> None:
    """Write pixels as PNG, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, content = cv2.imencode(".png", pixels)
    assert encoded
    path.write_bytes(content.tobytes())


def place_image(source: Path, target: Path, *, link: bool) -> None:
    """Copy or link an image. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
