"""The old names of options, show and bars. This file goes once every command uses the new ones."""

from collections.abc import Iterator
from contextlib import contextmanager

from defectseg.cli.bars import progress_bar
from defectseg.cli.bars import set_up_logging as set_up_logging
from defectseg.cli.options import BitDepth as BitDepth
from defectseg.cli.options import Device as Device
from defectseg.cli.options import Json as Json
from defectseg.cli.options import MaxPixels as MaxPixels
from defectseg.cli.options import Overwrite as Overwrite
from defectseg.cli.options import RuntimeName as RuntimeName
from defectseg.cli.options import Tta as Tta
from defectseg.cli.options import Verbose as Verbose
from defectseg.cli.options import state as state
from defectseg.cli.show import bit_depth_hint as bit_depth_hint
from defectseg.cli.show import finish as finish
from defectseg.cli.show import print_json as print_json
from defectseg.cli.show import print_rows as print_rows
from defectseg.cli.show import shown as shown
from defectseg.errors import require_extra as require_extra
from defectseg.machine import is_main_process as is_main_process
from defectseg.progress import Progress


class Bar:
    """A progress display with the calls of before."""

    def __init__(self, move: Progress) -> None:
        self.move = move
        self._done = self._total = 0

    def start(self, total: int) -> None:
        """Say how many steps there are."""
        self._total = total

    def advance(self) -> None:
        """Say that one more step is done."""
        self._done += 1
        self.move(self._done, self._total)


@contextmanager
def progress(what: str, *, after_interrupt: str = "") -> Iterator[Bar]:
    """See `progress_bar`."""
    with progress_bar(what, after_interrupt=after_interrupt) as move:
        yield Bar(move)
