"""The counts of an evaluation as a table, for people who go on with them in pandas."""

import pandas as pd

from defectseg.evaluation.metrics import Counts

PAIR_COLUMNS = ("ImageId", "ClassId", "true_px", "predicted_px", "both_px", "dice")


def pairs_frame(counts: Counts) -> pd.DataFrame:
    """A row for each (image, class) pair, sorted by ImageId, then ClassId; columns `PAIR_COLUMNS`, areas in px."""
    rows = [
        (image_id, class_id, pair.true_px, pair.predicted_px, pair.both_px, pair.dice)
        for (image_id, class_id), pair in sorted(counts.items())
    ]
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))
