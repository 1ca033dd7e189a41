"""What a comparison leaves: sentences, a table, compare.json, images.csv, pictures and a page."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from defectseg.compare.pictures import Picture, place_beside
from defectseg.compare.verdict import (
    BETTER,
    CANNOT_TELL,
    FIGURES,
    KAGGLE_DICE,
    LEAST_GROUPS,
    NOT_WORSE,
    VETO_P,
    WORSE,
    Verdict,
)
from defectseg.errors import ImageError
from defectseg.evaluate.metrics import score, signed
from defectseg.files import atomic_csv, own_dir, result_folder, write_result, write_text
from defectseg.image.overlay import encode_jpeg
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri
from defectseg.predict.names import output_names

PAGE, CONTENT, IMAGES, PICTURES, TO_LABEL = "compare.html", "compare.json", "images.csv", "pictures", "to_label.csv"
MOST_PICTURES = 40
_EMBEDDED_PX = 1200
_OWN_ENTRIES = frozenset({PAGE, CONTENT, IMAGES, PICTURES, TO_LABEL})
TONES = {BETTER: "good", NOT_WORSE: "good", WORSE: "bad", CANNOT_TELL: "unsure"}
_NOT_RECIPES = "This holds for these two files, not for the recipes that made them: trained again, they may differ."
_IN_WORDS = dict(
    zip(FIGURES, ("Kaggle Dice", "positive Dice", "missed sheets", "stopped sheets", "region recall"), strict=True)
)


def sentences(verdict: Verdict) -> list[str]:
    """The verdict in plain words, and what it holds for."""
    dice, groups = verdict.differences[KAGGLE_DICE], verdict.groups
    told = "nothing can be scored" if dice.difference is None else f"Kaggle Dice {signed(dice.difference)}"
    if dice.interval is not None:
        told += f", 95 % interval {signed(dice.interval.low)} to {signed(dice.interval.high)}"
    words = {
        BETTER: f"B is better than A: {told}.",
        WORSE: f"B is worse than A: {told}.",
        NOT_WORSE: f"B is not worse than A, by the margin of {verdict.margin:g}: {told}.",
        CANNOT_TELL: f"The images cannot tell: {told}.",
    }
    text = [words[verdict.on_dice]]
    for figure in verdict.vetoes:
        votes = verdict.votes[figure]
        text.append(
            f"Veto, more {_IN_WORDS[figure]}: B has more than A in {votes.for_a} groups, and fewer in {votes.for_b} "
            f"(sign test, p = {votes.p:.2g}; at most {VETO_P:g} is a veto)."
        )
    if verdict.vetoes and verdict.verdict == WORSE != verdict.on_dice:
        text.append("So B counts as worse, whatever its Dice.")
    if groups < LEAST_GROUPS:
        text.append(f"There are {groups} groups; fewer than {LEAST_GROUPS} tell nothing for sure.")
    if verdict.more_groups is not None:
        text.append(f"About {verdict.more_groups:,} more groups would probably tell, if the difference is as it seems.")
    return [*text, _NOT_RECIPES]


def table(verdict: Verdict) -> list[tuple[str, ...]]:
    """Rows of text: headings, and the FIGURES."""
    rows = [("", "A", "B", "B − A", "95 % interval")]
    for figure, one in verdict.differences.items():
        bounds = f"{signed(one.interval.low)} to {signed(one.interval.high)}" if one.interval else "–"
        difference = "–" if one.difference is None else signed(one.difference)
        rows.append((_IN_WORDS[figure], score(one.a), score(one.b), difference, bounds))
    return rows


def write_folder(
    out: Path,
    content: Mapping[str, object],
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    panels: Callable[[str], Sequence[tuple[Picture, str]]] | None,
    *,
    captions: Mapping[str, str],
    to_label: Sequence[str] = (),
    overwrite: bool,
    **page: object,
) -> None:
    """Write compare.json, images.csv, a picture of each image that has a caption, and compare.html.

    Args:
        out: the output folder, made if absent.
        content: of compare.json.
        columns, rows: of images.csv.
        panels: makes the parts of the picture of an image; None: without pictures.
        captions: ImageId -> what the page says of it; the first 40 are shown.
        to_label: ImageIds for to_label.csv, which is not written if there are none.
        overwrite: replace an earlier comparison.
        page: the other variables of the template.

    Raises:
        OutputExistsError, ResourceError: see `files.result_folder`.
    """
    with result_folder(out, _OWN_ENTRIES, writer="compare", overwrite=overwrite):
        shutil.rmtree(out / PICTURES, ignore_errors=True)
        for name in _OWN_ENTRIES - {PICTURES}:
            (out / name).unlink(missing_ok=True)
        own_dir(out / PICTURES)
        shown = []
        names = output_names(list(captions)[:MOST_PICTURES])
        for image_id in list(captions)[:MOST_PICTURES]:
            picture = None
            if panels is not None:
                with suppress(ImageError):  # changed or deleted meanwhile
                    picture = place_beside(panels(image_id))
                    write_result(out / PICTURES / f"{names[image_id]}.jpg", encode_jpeg(picture))
            source = None if picture is None else data_uri(picture, largest_px=_EMBEDDED_PX)
            shown.append((image_id, captions[image_id], source))
        with atomic_csv(out / IMAGES, columns, for_people=True) as write:
            write(rows)
        if to_label:
            with atomic_csv(out / TO_LABEL, ["ImageId"]) as write:
                write([image_id] for image_id in to_label)
        html = render_page("defectseg.compare", {}, **page, content=content, shown=shown, changed=len(captions))
        write_text(out / PAGE, html)
        write_text(out / CONTENT, json.dumps(content, indent=2, allow_nan=False) + "\n")
