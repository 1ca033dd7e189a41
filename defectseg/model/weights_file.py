"""Files of weights from anybody: read without running code in them, and in memory that their size foretells."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file

from defectseg.files import open_regular

_MOST_BYTES = 2**24  # of what describes the weights, be it a header or pickles; that of large models has 2 MB


class _Pickles(io.BufferedReader):
    """A file of PyTorch before version 1.6: pickles, read through this class, then weights, read from the disk."""

    _left_bytes = _MOST_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or size < 0
        return self._counted(super().read(self._left_bytes if whole else min(size or 0, self._left_bytes)))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().readline(self._left_bytes))

    def _counted(self, content: bytes) -> bytes:
        self._left_bytes -= len(content)
        if self._left_bytes <= 0:
            raise ValueError(f"more than {_MOST_BYTES} bytes that are no weights")
        return content


def load_tensors(path: Path) -> Any:
    """The content of a .safetensors file, or of one that `torch.save` wrote. Errors are of many kinds."""
    with open_regular(path) as file:
        if path.suffix.lower() != ".safetensors":
            return unpickle(file)
        if int.from_bytes(file.read(8), "little") > _MOST_BYTES:
            raise ValueError("its header is too long")
        return load_file(path)


def unpickle(file: BinaryIO) -> Any:
    """What `torch.save` wrote into a file, on the CPU. Errors are of many kinds."""
    is_zip = file.read(4) == b"PK\x03\x04"  # as torch decides
    if is_zip:
        size_bytes = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > size_bytes:
            raise ValueError("it would be larger in memory than on the disk")
        if any(entry.file_size > _MOST_BYTES for entry in entries if entry.filename.endswith(".pkl")):
            raise ValueError(f"more than {_MOST_BYTES} bytes that are no weights")
    file.seek(0)
    source = file if is_zip else _Pickles(file)  # type: ignore[arg-type]
    return torch.load(source, map_location="cpu", weights_only=True)
