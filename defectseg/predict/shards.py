"""Shards: parts of the images, each for a `predict` of its own, perhaps on another machine."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from defectseg.errors import UsageError

AUTO = "auto"
_ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "STEP"))
_RANKS = ("RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Shard:
    """One of `count` shards, numbered from 1. An image belongs to a shard by its ImageId alone."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def __contains__(self, image_id: str) -> bool:
        digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard that a text names: i/n, or `auto`, which takes it from the variables of a job.

    Those of a job array of SLURM come first, then RANK and WORLD_SIZE.

    Raises:
        UsageError: the text is something else, there is no such shard, or variables are missing or do not fit.
    """
    if text == AUTO:
        return _of_task(environment)
    match = re.fullmatch(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UsageError(f"found {text!r}; expected i/n with i from 1 to n, such as 1/8, or auto.", argument="shard")
    return Shard(int(match[1]), int(match[2]))


def _of_task(environment: Mapping[str, str]) -> Shard:
    names = next((names for names in (_ARRAY, _RANKS) if names[0] in environment), ())
    variables = {name: environment.get(name, "") for name in names}
    try:
        task, count, first, step = (*map(int, variables.values()), 0, 1)[:4]
        index, rest = divmod(task - first, step)
    except (ValueError, ZeroDivisionError):  # a value is missing or no number
        index = rest = count = 0
    if rest or not 0 <= index < count:
        told = ", ".join(f"{name}={value}" for name, value in variables.items()) or "neither"
        raise UsageError(
            f"auto needs {', '.join(_ARRAY)}, which SLURM sets in a job array without gaps, or else "
            f"{' and '.join(_RANKS)}; found {told}. Name the shard instead, such as 1/8.",
            argument="shard",
        )
    return Shard(index + 1, count)


def digest_of(image_ids: Iterable[str]) -> str:
    """Checksum of a set of ImageIds, the same in any order."""
    digest = hashlib.sha256()
    for image_id in sorted(image_ids):
        digest.update(f"{image_id}\n".encode())  # no ImageId has a line feed
    return digest.hexdigest()
