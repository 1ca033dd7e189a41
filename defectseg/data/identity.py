"""Fingerprints that tell files apart by content, whatever they are called."""

import hashlib
from pathlib import Path

_HEAD_BYTES = 65_536


def image_digest(path: Path) -> str:
    """12 hexadecimal digits from the size and the first 64 KiB of a file: enough to know an image again.

    Raises OSError where the file cannot be read.
    """
    with path.open("rb") as handle:
        head = handle.read(_HEAD_BYTES)
    return hashlib.blake2b(head + str(path.stat().st_size).encode(), digest_size=6).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
