"""What a comparison tells: sentences, a table, compare.json, images.csv, pictures and a page."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from defectseg.compare.pictures import Panel, place_beside
from defectseg.compare.verdict import BETTER, CANNOT_TELL, KAGGLE_DICE, LEAST_GROUPS, NOT_WORSE, WORSE, Verdict
from defectseg.errors import ImageError
from defectseg.evaluate.metrics import decimals, signed
from defectseg.files import atomic_csv, own_dir, result_folder, text_not_formula, write_result, write_text
from defectseg.image.overlay import encode_jpeg
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri
from defectseg.predict.names import output_names

if TYPE_CHECKING:
    import pandas as pd

PAGE, CONTENT, IMAGES, PICTURES, TO_LABEL = "compare.html", "compare.json", "images.csv", "pictures", "to_label.csv"
MOST_PICTURES = 40
_EMBEDDED_PX = 1200
_OWN_ENTRIES = frozenset({PAGE, CONTENT, IMAGES, PICTURES, TO_LABEL})
_NOT_RECIPES = "This holds for these two files, not for the recipes that made them: trained again, they may differ."


@dataclass(frozen=True)
class Result:
    """A comparison, to be shown.

    Attributes:
        title: heading of the page.
        content: of compare.json.
        sentences: what it says, in plain words.
        warnings: sentences.
        images: of images.csv: a row for each image that changed, those to look at first.
        panels: makes the parts of the picture of an image; None: without pictures.
        table: rows of text, headings first; empty without labels.
        verdict: None without labels.
        to_label: ImageIds for to_label.csv.
        unreadable: how many images were left out because they could not be read.
    """

    title: str
    content: Mapping[str, object]
    sentences: Sequence[str]
    warnings: Sequence[str]
    images: "pd.DataFrame"
    panels: Callable[[str], Sequence[Panel]] | None
    table: Sequence[Sequence[str]] = ()
    verdict: Verdict | None = None
    to_label: Sequence[str] = ()
    unreadable: int = 0


def sentences(verdict: Verdict) -> list[str]:
    """The verdict in plain words, and what it holds for."""
    dice, text = verdict.differences[KAGGLE_DICE], list[str]()
    told = "nothing can be scored" if dice.difference is None else f"Kaggle Dice {signed(dice.difference)}"
    if dice.interval is not None:
        told += f", 95 % interval {signed(dice.interval.low)} to {signed(dice.interval.high)}"
    for fault in verdict.vetoes:
        votes = verdict.votes[fault]
        text.append(
            f"A veto, whatever the Dice: B has more {_words(fault)} than A in {votes.for_a} groups, and fewer in "
            f"{votes.for_b} (sign test, p = {votes.p:.2g})."
        )
    words = {
        BETTER: "B is better than A",
        WORSE: "B is worse than A",
        NOT_WORSE: f"B is not worse than A, by the margin of {verdict.margin:g}",
        CANNOT_TELL: "The images cannot tell",
    }
    text.append(f"{words[verdict.on_dice]}: {told}.")
    if verdict.verdict != verdict.on_dice:
        text.append("Because of the veto, B counts as worse.")
    if verdict.groups < LEAST_GROUPS:
        text.append(f"Fewer than {LEAST_GROUPS} groups tell nothing for sure.")
    if verdict.more_groups is not None:
        text.append(f"About {verdict.more_groups:,} more groups would probably tell, if the difference is as it seems.")
    return [*text, _NOT_RECIPES]


def table(verdict: Verdict) -> Sequence[tuple[str, ...]]:
    """Rows of text: headings, and the FIGURES."""
    rows = [("", "A", "B", "B − A", "95 % interval")]
    for figure, one in verdict.differences.items():
        bounds = f"{signed(one.interval.low)} to {signed(one.interval.high)}" if one.interval else "–"
        difference = "–" if one.difference is None else signed(one.difference)
        rows.append((_words(figure), decimals(one.a), decimals(one.b), difference, bounds))
    return rows


def check_output(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `write_result_folder` would refuse, before a long computation. Raises as that does."""
    with result_folder(out, _OWN_ENTRIES, writer="compare", overwrite=overwrite):
        pass


def write_result_folder(out: Path, result: Result, *, overwrite: bool = False) -> None:
    """Write compare.json, images.csv, pictures of the images at its top, and compare.html.

    Raises:
        OutputExistsError, ResourceError: see `files.result_folder`.
    """
    with result_folder(out, _OWN_ENTRIES, writer="compare", overwrite=overwrite):
        shutil.rmtree(out / PICTURES, ignore_errors=True)
        (out / TO_LABEL).unlink(missing_ok=True)
        own_dir(out / PICTURES)
        shown = []
        names = output_names(result.images["ImageId"][:MOST_PICTURES])
        for image_id in result.images["ImageId"][:MOST_PICTURES]:
            picture = None
            with suppress(ImageError):  # changed or deleted meanwhile
                if result.panels is not None:
                    picture = place_beside(result.panels(image_id))
                    write_result(out / PICTURES / f"{names[image_id]}.jpg", encode_jpeg(picture))
            shown.append((image_id, None if picture is None else data_uri(picture, largest_px=_EMBEDDED_PX)))
        rows = result.images.set_index("ImageId", drop=False)
        page = render_page(
            "defectseg.compare", {"score": decimals}, result=result, title=result.title, shown=shown, rows=rows
        )
        for_people = result.images.map(lambda cell: text_not_formula(cell) if isinstance(cell, str) else cell)
        write_text(out / IMAGES, for_people.to_csv(index=False, lineterminator="\n", float_format="%.9g"))
        if result.to_label:
            with atomic_csv(out / TO_LABEL, ["ImageId"]) as write:
                write([image_id] for image_id in result.to_label)
        write_text(out / CONTENT, json.dumps(result.content, indent=2, allow_nan=False) + "\n")
        write_text(out / PAGE, page)


def _words(figure: str) -> str:
    return figure.replace("_", " ").replace("dice", "Dice").replace("kaggle", "Kaggle")
