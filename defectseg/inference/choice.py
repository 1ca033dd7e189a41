"""Which results a prediction run writes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from defectseg.errors import UsageError

OVERLAYS, MASKS, RLE, REGIONS = "overlays", "masks", "rle", "regions"
OUTPUTS = (OVERLAYS, MASKS, RLE, REGIONS)
OVERLAYS_OF = ("all", "defects", "none")


@dataclass(frozen=True)
class OutputChoice:
    """What is written besides images.csv, errors.csv and run.json.

    Attributes:
        names: some of OUTPUTS, in their order.
        overlays: which images get an overlay, all or those with defects; all where none gets one.
    """

    names: tuple[str, ...] = OUTPUTS
    overlays: str = "all"

    def has_overlay(self, *, with_defect: bool) -> bool:
        """Whether an image gets an overlay."""
        return OVERLAYS in self.names and (with_defect or self.overlays == "all")

    def as_json(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {**asdict(self), "names": list(self.names)}

    @classmethod
    def from_run(cls, run: dict[str, Any]) -> "OutputChoice":
        """What the content of a run.json says; everything, where nothing else was asked for.

        Raises:
            KeyError, TypeError: it was not written by `predict`.
        """
        stored = run["key"].get("outputs")
        return cls() if stored is None else cls(tuple(map(str, stored["names"])), str(stored["overlays"]))


EVERYTHING = OutputChoice()


def choose_outputs(outputs: Sequence[str] | None, overlays: str | None) -> OutputChoice:
    """What the flags --outputs and --overlays ask for; None stands for a flag that is not given.

    Raises:
        UsageError: a name that there is not, no name at all, or two flags that contradict each other.
    """
    if outputs is not None and not outputs:
        raise UsageError(f"--outputs names nothing; expected some of {', '.join(OUTPUTS)}. Leave it out for all.")
    for name in outputs or ():
        if name not in OUTPUTS:
            raise UsageError(f"--outputs {name}: expected some of {', '.join(OUTPUTS)}, with commas between them.")
    if overlays is not None and overlays not in OVERLAYS_OF:
        raise UsageError(f"--overlays {overlays}: expected {', '.join(OVERLAYS_OF)}.")
    if outputs is not None and overlays is not None and (OVERLAYS in outputs) == (overlays == "none"):
        raise UsageError(
            f"--outputs {','.join(outputs)} and --overlays {overlays} contradict each other. Leave one of them out."
        )
    names = tuple(
        name for name in OUTPUTS if name in (outputs or OUTPUTS) and not (name == OVERLAYS and overlays == "none")
    )
    return OutputChoice(names, (overlays or "all") if OVERLAYS in names else "all")
