"""Gate, pixel threshold and minimum area of each class, chosen on labelled images.

`run` is what `defectseg tune` calls and `search` what training calls too: it keeps `sums` of each image, which `grid`
turns into scores of every setting. `goals` choose among these, `crossval` scores the choice on images left out, and
`settle` makes of both a `choice`, with the `doubts` that there are. `file` writes thresholds and reads them.
"""
