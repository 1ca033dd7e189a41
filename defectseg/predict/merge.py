"""`defectseg merge`: the results of all shards in one folder, as of one `predict`."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectseg import errors
from defectseg.errors import DataError, OutputExistsError, UsageError
from defectseg.files import are_nested, resource_errors, size_and_time, write_result
from defectseg.image.read import read_file
from defectseg.machine import __version__
from defectseg.predict.output import differences, finished_folder, output_folder, status_of
from defectseg.predict.rules import Rules
from defectseg.predict.shards import Shard, digest_of, parse_shard
from defectseg.predict.tables import OutputChoice, counts_of
from defectseg.progress import Progress, silent

log = logging.getLogger(__name__)

_MERGING = "merging"  # the status of `out` until it is complete
_SHOWN = 5
_COMMON = ("model", "runtime", "tta", "class_names", "thresholds_chosen_by", "training")  # entries of run.json


@dataclass(frozen=True)
class _Part:
    """The results of a shard: its folder, the content of run.json, its outputs and its ImageIds."""

    root: Path
    run: dict[str, Any]
    shard: Shard
    choice: OutputChoice
    image_ids: tuple[str, ...]


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    fail_on: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Put the results of all shards of one `predict` together, as if it had been done in one go.

    Everything is checked before anything is written. Pictures become hard links where that is possible, else copies.
    What an interrupted merge left in `out` is replaced.

    Args:
        folders: output folders of finished runs, one for each shard.
        out: output folder.
        overwrite: delete earlier results in `out`.
        fail_on: rules, see defectseg.predict.rules; the content of run.json tells which images meet one.
        progress: counts the images.

    Returns:
        the content of run.json.

    Raises:
        UsageError: a rule cannot be meant, a folder is given twice, or `out` lies in one of the folders or around it.
        OutputExistsError: `out` contains something else, or earlier results that must not be deleted.
        DataError: a folder does not hold the finished results of a shard with all pictures; a shard is missing or comes
            twice; or shards differ in their model, settings or list of images.
        ResourceError: `out` cannot be written.
    """
    _check_places(folders, out)
    parts = [_check_part(folder) for folder in folders]
    _check_together(parts)
    run, choice = parts[0].run, parts[0].choice
    rules = None if fail_on is None else Rules.parse(fail_on, run["class_names"], choice, run["key"]["only_classes"])
    if not overwrite and status_of(out) not in ("", _MERGING):
        raise OutputExistsError(f"{out}: holds results. Choose another output folder.", go_on={"overwrite": True})
    image_ids = [image_id for part in parts for image_id in part.image_ids]
    key, statuses = {**run["key"], "shard": None}, Counter[str]()
    with output_folder(out, key, choice, overwrite=True, status=_MERGING) as output:
        output.runs = _united(one for part in parts for one in part.run["runs"])
        output.name_pictures(image_ids)
        for part in parts:
            with finished_folder(part.root) as (_, source):
                for record in source.journal.records():
                    new = output.pictures(record)
                    for kind, picture in source.pictures(record).items():
                        _place(Path(picture), Path(new[kind]))
                    output.journal.add(record)
                    statuses[record.status] += 1
                    progress(statuses.total(), len(image_ids))
        output.journal.write_sorted()
        return output.finish(_run_of(parts, statuses), rules)


def _check_places(folders: Sequence[Path], out: Path) -> None:
    seen = set[Path]()
    for folder in folders:
        real = Path(os.path.realpath(folder))
        if real in seen:
            raise UsageError(f"{folder}: given twice, perhaps by another name or through a link.")
        if are_nested(folder, out):
            raise UsageError(f"{out} is in or around {folder}. Choose another folder.", argument="out")
        seen.add(real)


def _check_part(root: Path) -> _Part:
    with finished_folder(root) as (run, folder):
        try:
            shard, own_images, _ = parse_shard(run["key"]["shard"]), run["own_images_sha256"], run["all_images_sha256"]
        except (KeyError, TypeError, UsageError):
            flag = errors.spelling("shard", "i/n")
            raise DataError(f"{root}: holds no shard; expected results of predict with {flag}.") from None
        if digest_of(folder.journal.image_ids) != own_images:
            raise DataError(
                f"{root}: holds other images than its last run was given: its journal is damaged, or images are gone. "
                f"Run the same predict again; if that does not help, with {errors.spelling('overwrite', True)}."
            )
        pictures = (picture for record in folder.journal.records() for picture in folder.pictures(record).values())
        if lost := next((picture for picture in pictures if not size_and_time(picture)[0]), ""):
            raise DataError(f"{lost}: a picture that is missing or empty. Run the same predict again.")
        return _Part(root, run, shard, folder.choice, tuple(folder.journal.image_ids))


def _check_together(parts: Sequence[_Part]) -> None:
    first, folder_of = parts[0], dict[Shard, Path]()
    keys = [{**part.run["key"], "shard": f"i/{part.shard.count}"} for part in parts]
    for part, key in zip(parts, keys, strict=True):
        if found := differences(keys[0], key):
            raise DataError(
                f"{part.root}: does not fit {first.root}, it was predicted with another model or other settings "
                f"({'; '.join(found)}). Predict all shards alike."
            )
        if part.run["all_images_sha256"] != first.run["all_images_sha256"]:
            raise DataError(
                f"{part.root}: is a shard of another list of images than {first.root}. Run the same predict again for "
                "each shard, all with the same images."
            )
        if part.shard in folder_of:
            raise DataError(
                f"{part.root}: holds shard {part.shard}, as {folder_of[part.shard]} does. Give one of them."
            )
        folder_of[part.shard] = part.root
    shards = (Shard(index, first.shard.count) for index in range(1, first.shard.count + 1))
    if missing := [str(shard) for shard in shards if shard not in folder_of]:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"shards are missing: {', '.join(missing[:_SHOWN])}{more}. Give the folders of all {first.shard.count}, or "
            f"run the same predict with {errors.spelling('shard', missing[0])} first."
        )


def _place(source: Path, target: Path) -> None:
    with resource_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one that has no hard links
        write_result(target, read_file(source))


def _united(series: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries `runs` of all shards; those with the same versions and runtime become one."""
    united: list[dict[str, Any]] = []
    for one in sorted(series, key=lambda one: str(one["last"])):
        same = next((other for other in united if other["computed_by"] == one["computed_by"]), None)
        if same is None:
            united.append(dict(one))
        else:
            first = min(same["first"], one["first"])
            same |= {"first": first, "last": one["last"], "runs": same["runs"] + one["runs"]}
    if len(united) > 1:
        found = "; ".join(differences(united[0]["computed_by"], united[1]["computed_by"]))
        log.warning("the results were not all computed by the same (%s), and may differ a little", found)
    return united


def _run_of(parts: Sequence[_Part], statuses: Counter[str]) -> dict[str, Any]:
    """The entries of run.json."""
    runs = [part.run for part in parts]
    return {
        "defectseg": __version__,
        **{name: runs[0][name] for name in _COMMON},
        "started": min(run["started"] for run in runs),
        "ended": max(run["ended"] for run in runs),
        "status": "finished",
        **counts_of(statuses),
        "warnings": list(dict.fromkeys(warning for run in runs for warning in run["warnings"])),
        "shards": {str(part.shard): str(part.root) for part in sorted(parts, key=lambda part: part.shard.index)},
    }
