"""SRC of an import: a file, a folder, or a ZIP archive, which is unpacked."""

import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from defectseg.errors import DataError, DefectsegError, LabelError
from defectseg.files import unpack_zip
from defectseg.formats.losses import Tally
from defectseg.image.find import IMAGE_SUFFIXES
from defectseg.progress import Progress
from defectseg.text import read_json, read_xml

_FEW = 20


class LabelSource:
    """The files of a source. Hidden files are passed over, such as those that macOS puts beside others.

    Attributes:
        given: what the user named, for messages.
        root: the folder; for a single file, its folder.
        file: the single file, or None.
        files: relative POSIX paths of all files, sorted; for a single file, its name alone.
        left_out: paths that are not in `files`, because they are links that lead out of the root.
    """

    def __init__(self, given: Path, root: Path, file: Path | None = None, *, follow_links: bool = False) -> None:
        self.given, self.root, self.file, self._follow_links = given, root, file, follow_links
        self.left_out: list[str] = []
        # The first few of each kind are looked at again and again. Files of labelme hold their images.
        self._parsed = lru_cache(2 * _FEW)(self._parse)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """See the class."""
        if self.file is not None:
            return (self.file.name,)
        found: list[str] = []
        seen: set[str] = set()
        real_root = os.path.realpath(self.root)
        for folder, subfolders, names in os.walk(self.root, onerror=_refuse_folder, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # links in a circle
                subfolders.clear()
                continue
            seen.add(real)
            links = [path for name in (*subfolders, *names) if (path := Path(folder, name)).is_symlink()]
            out = {path.name for path in links if leads_out(path, real_root) and not self._follow_links}
            self.left_out += [str(Path(folder, name)) for name in sorted(out)]
            subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in {*out, "__MACOSX"}]
            prefix = Path(folder).relative_to(self.root).as_posix()
            shown = (name for name in names if not name.startswith(".") and name not in out)
            found += [name if prefix == "." else f"{prefix}/{name}" for name in shown]
        return tuple(sorted(found))

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Files with one of these suffixes, which are given in lower case."""
        return [file for file in self.files if PurePosixPath(file).suffix.lower() in suffixes]

    def named(self, *names: str) -> list[str]:
        """Files with one of these names, which are given in lower case, in any folder."""
        return [file for file in self.files if PurePosixPath(file).name.lower() in names]

    @cached_property
    def image_stems(self) -> frozenset[str]:
        """The names of all images, without folders and suffixes."""
        return frozenset(PurePosixPath(file).stem for file in self.with_suffix(*IMAGE_SUFFIXES))

    def means_another(self, file: str, image: str) -> bool:
        """Whether both the image that a label file names and one that is called like the file are there."""
        stems = {PurePosixPath(file).stem, PurePosixPath(image.replace("\\", "/")).stem}
        return len(stems & self.image_stems) > 1

    def path(self, file: str) -> Path:
        """The path of one of the files."""
        return self.root / file

    def content(self, file: str) -> Any:
        """What a JSON file holds, or the root element of an XML file. Raises LabelError if it is not valid."""
        return self._parsed(file)

    def _parse(self, file: str) -> Any:
        return (read_xml if file.lower().endswith(".xml") else read_json)(self.path(file))

    def first(self, suffix: str) -> Iterator[tuple[str, Any]]:
        """Name and content of the first few files with this suffix that are valid, to recognise what they are."""
        for file in self.with_suffix(suffix)[:_FEW]:
            with suppress(LabelError):
                yield file, self.content(file)

    def evidence(self, suffix: str, is_kind: Callable[[Any], bool], what: str) -> str:
        """A phrase that says which of the first valid files is of a kind; "" if none is."""
        return next((f"{file} {what}" for file, content in self.first(suffix) if is_kind(content)), "")

    def of_kind(
        self, suffix: str, is_kind: Callable[[Any], bool], tally: Tally, *, without: Collection[str] = ()
    ) -> Iterator[tuple[str, str, Any]]:
        """File, how messages name it, and content of each JSON or XML file of a kind. Counts the others.

        Raises:
            LabelError: a file is not valid.
        """
        for file in self.with_suffix(suffix):
            if is_kind(content := self.content(file)):
                yield file, f"{self.given}: {file}", content
            elif file not in without:
                tally.add("other_file", example=file)


def leads_out(path: Path, *roots: str) -> bool:
    """Whether a path leads out of folders, given by their real paths, by a link."""
    real = Path(os.path.realpath(path))
    return not any(real.is_relative_to(root) for root in roots)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: the folder cannot be listed ({error.strerror}). Check its permissions.")


@contextmanager
def open_source(src: Path, unpacked: Path, follow_links: bool, progress: Progress) -> Iterator[LabelSource]:
    """Open a source. An archive is unpacked into the folder `unpacked`, which is made, and removed at the end.

    Raises:
        DataError: it does not exist, or is a damaged archive.
        ResourceError: there is no space to unpack it.
    """
    if os.path.isdir(src):  # noqa: PTH112 - Path.is_dir raises PermissionError
        yield LabelSource(src, src, follow_links=follow_links)
    elif not os.path.isfile(src):  # noqa: PTH113
        raise DataError(f"{src}: no such file or folder, or no permission to see it; expected labels.")
    elif not zipfile.is_zipfile(src):
        if src.name.lower().endswith((".zip", ".rar", ".7z", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")):
            raise DataError(f"{src}: no whole ZIP archive. Download it again, or unpack it and give the folder.")
        yield LabelSource(src, src.parent, src)
    else:
        try:
            unpack_zip(src, unpacked, remedy="Export it again.", progress=progress)
            yield LabelSource(src, unpacked)
        except DefectsegError as error:  # the user does not know the unpacked folder
            error.args = (str(error.args[0]).replace(str(unpacked), str(src)),)
            raise
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
