"""The layout of a YOLO data set: data.yaml, and the folders of images that it names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from defectseg.errors import DataError
from defectseg.formats.common import tidy_names

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class YoloSet:
    """What data.yaml says.

    Attributes:
        root: the folder of the data set; everything lies below it.
        yaml_path: the file itself, for messages.
        names: name n belongs to class n, counted from 0.
        folders: "train", "val" and "test", as far as they are there -> folders of images.
    """

    root: Path
    yaml_path: Path
    names: tuple[str, ...]
    folders: Mapping[str, tuple[Path, ...]]


def read_yolo_set(src: Path) -> YoloSet:
    """Read the data.yaml of a folder, or the YAML file itself.

    Raises:
        DataError: there is none, it is not valid, names no classes or no images, or leads out of its folder.
    """
    path = _find_yaml(src)
    document = _read_yaml(path)
    if "kpt_shape" in document:
        raise DataError(f"{path}: describes key points ('kpt_shape'), not outlines. Export as YOLO segmentation.")
    names = _names(document, path)
    root = _below(path.parent, document.get("path")) or path.parent
    folders = {}
    for part in PARTS:
        entries = document.get(part) or (document.get("valid") if part == "val" else None) or []
        entries = entries if isinstance(entries, list) else [entries]
        found = tuple(_folder(root, entry, part, path) for entry in entries)
        if found:
            folders[part] = found
    if not folders:
        raise DataError(f"{path}: has neither 'train', 'val' nor 'test'; expected folders of images there.")
    return YoloSet(root, path, names, folders)


def _find_yaml(src: Path) -> Path:
    if src.is_file() and src.suffix.lower() in (".yaml", ".yml"):
        return src
    if not src.is_dir():
        raise DataError(f"{src}: no such folder; expected a YOLO data set with {YAML_NAMES[0]}.")
    path = next((src / name for name in YAML_NAMES if (src / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{src}: has no {YAML_NAMES[0]}; expected it beside images/ and labels/, with train, val and names. "
            "If it has another name, give the file itself."
        )
    return path


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds no mapping; expected the keys train, val and names.")
    return document


def _names(document: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = document.get("names")
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        expected = [str(number) for number in range(len(names))]
        if by_number.keys() != set(expected):
            raise DataError(f"{path}: names has the keys {', '.join(by_number)}; expected 0 to {len(names) - 1}.")
        names = [by_number[number] for number in expected]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: 'names' is {names!r}; expected a list of class names, or a mapping from 0 on.")
    count = document.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{path}: nc is {count}, but names has {len(names)}. Mend the one that is wrong.")
    return tidy_names([str(name) for name in names], where=f"{path}: names")


def _folder(root: Path, entry: Any, part: str, path: Path) -> Path:
    folder = _below(root, entry)
    if folder is None:
        raise DataError(
            f"{path}: {part} is {entry!r}, which is no folder below {root}. Expected a folder of images, written "
            "relative to the data set (a list of files in a .txt is not read)."
        )
    return folder


def _below(root: Path, entry: Any) -> Path | None:
    """The folder below `root` that an entry names; None where there is none.

    Roboflow writes ../train/images for train/images, and others the absolute path that the set had on their machine;
    so leading parts are left off until a folder is found. Nothing above `root` is ever looked at.
    """
    if not isinstance(entry, str):
        return None
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    for start in range(len(parts)):
        if (folder := root.joinpath(*parts[start:])).is_dir():
            return folder
    return None if parts else root
