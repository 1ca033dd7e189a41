"""`defectseg watch`: images are handled as a camera writes them."""

import errno
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from defectseg.errors import DataError, OutputExistsError, ResourceError, UsageError
from defectseg.files import check_is_free, folder_lock, write_text
from defectseg.image.find import FoundImage, escaped
from defectseg.image.read import bit_depth_warnings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.predict.camera import Camera
from defectseg.predict.days import Days, day_of, stamp_of
from defectseg.predict.health import FAILED, RUNNING, STOPPED, Health
from defectseg.predict.output import differences
from defectseg.predict.predict import Loaded, load, now
from defectseg.predict.render import Rendered, render, render_unreadable
from defectseg.predict.tables import OutputChoice, Record, choose_outputs
from defectseg.predict.webhook import Webhook, check_address

log = logging.getLogger(__name__)

BACKLOG_S = 60.0
WAIT_S = 1.0  # between two tries to write to a full disk
SLEEP_S = 0.1  # after so long, a request to stop is noticed
_ENOUGH_16_BIT = 20  # images, to judge their bit depth
_MARK, _HEALTH, _OUTBOX = "watch.json", "health.json", "webhook.jsonl"

_Out = TypeVar("_Out")


def watch(
    models: Path | Sequence[Path],
    folder: Path,
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    runtime: str = "auto",
    workers: int | None = None,
    outputs: Sequence[str] | None = None,
    overlays: str | None = None,
    tta: str | None = None,
    bit_depth: int | None = None,
    meets_rule: Callable[[Record], bool] | None = None,
    webhook: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Process the images of a folder as they come, until `stopped` says True.

    An image is its name, size and time. Its results are in the output folder of its day, `out`/YYYY-MM-DD, which is one
    of `predict`. Images that have results there are not processed again.

    Args:
        models, classes, device, runtime, workers, outputs, overlays, tta, bit_depth: as for `predict`.
        folder: what is watched, with its subfolders.
        out: folder for the days and for health.json; not within `folder`, nor around it.
        meets_rule: which sheets the webhook is told about.
        webhook: address for them.
        stopped: asked several times a second; then images in work are finished, and tables are written.

    Returns:
        the content of health.json.

    Raises:
        DataError: `folder` is not there.
        OutputExistsError: `out` contains something else, or results of another model or other settings.
        UsageError: an argument is wrong, or some of them together.
        ModelError, ResourceError: it cannot go on; the same call continues.
    """
    _check(folder, out, meets_rule is not None, webhook)
    choice = choose_outputs(outputs, overlays)
    loaded = load(
        models, classes=classes, device=device, runtime=runtime, workers=workers, tta=tta, bit_depth=bit_depth
    )
    with folder_lock(out), ExitStack() as stack:
        _check_own(out, folder, json.loads(json.dumps({**loaded.key, "outputs": asdict(choice)})))
        about = {"started": loaded.run["started"], "folder": str(folder), "model": loaded.run["model"]}
        health = stack.enter_context(closing(Health(out / _HEALTH, about)))
        days = stack.enter_context(closing(Days(out, loaded, choice)))
        sender = Webhook(out / _OUTBOX, webhook, health.trouble) if webhook is not None else None
        if sender is not None:
            stack.enter_context(closing(sender))
        try:
            _Watch(folder, loaded, choice, days, health, sender, meets_rule, stopped).run()
            health.state = STOPPED
        except BaseException as error:
            health.state = FAILED
            health.trouble(str(error) or type(error).__name__)
            raise
    return health.content()


def _check(folder: Path, out: Path, has_rule: bool, webhook: str | None) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Name the one that the camera writes into.")
    real, real_out = Path(os.path.realpath(folder)), Path(os.path.realpath(out))
    if real_out.is_relative_to(real) or real.is_relative_to(real_out):
        raise UsageError(f"{out} and the watched folder {folder} lie in each other. Choose another.", argument="out")
    if has_rule != (webhook is not None):
        given, lacking = ("fail_on", "webhook") if has_rule else ("webhook", "fail_on")
        raise UsageError(f"goes together with {lacking}. Give both, or none.", argument=given)
    if webhook is not None:
        check_address(webhook)


def _check_own(out: Path, folder: Path, key: dict[str, Any]) -> None:
    """Mark a new folder with the key of its results; refuse a foreign one, and one with another key."""
    mark = out / _MARK
    if not mark.exists():
        check_is_free(out, (_HEALTH, _OUTBOX), writer="watch")
        write_text(mark, json.dumps({"folder": str(folder), "key": key}, indent=2) + "\n")
        return
    try:
        earlier = json.loads(mark.read_text(encoding="utf-8"))
        found, before = differences(earlier["key"], key), earlier["folder"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise OutputExistsError(f"{mark}: not as watch writes it. Choose another output folder.") from None
    if found:
        what = f"holds results of another model or other settings ({'; '.join(found)})"
        raise OutputExistsError(f"{out}: {what}. Choose another output folder.")
    if before != str(folder):
        log.warning("%s: so far, results came from images in %s. Images of the same name replace them.", out, before)


class _Watch:
    """The loop of `watch`."""

    def __init__(
        self,
        folder: Path,
        loaded: Loaded,
        choice: OutputChoice,
        days: Days,
        health: Health,
        webhook: Webhook | None,
        meets_rule: Callable[[Record], bool] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self._folder, self._loaded, self._choice, self._days, self._health = folder, loaded, choice, days, health
        self._webhook, self._meets_rule, self._stopped = webhook, meets_rule, stopped
        self._camera = Camera(folder, days.handled, health.trouble)
        self._queue: deque[FoundImage] = deque()
        self._poll_due_s = 0.0
        self._told_backlog_s = time.monotonic()
        self._brightest: Counter[int | None] = Counter()

    def run(self) -> None:
        """Handle images until it is stopped."""
        self._days.resume()
        network, settings = self._loaded.network, self._loaded.settings

        def paint(one: Segmented) -> Rendered:
            return render(one, network.class_names, self._choice)

        log.info("watching %s; results by day in %s", self._folder, self._days.root)
        with closing(stream(self._images(), network, settings, paint)) as results:
            for result in results:
                self._take(result)
        self._days.finish()

    def _images(self) -> Iterator[FoundImage | None]:
        """Complete images, the oldest first; None while there are none, so that the stream holds no result back."""
        while not self._stopped():
            if time.monotonic() >= self._poll_due_s:
                self._poll()
            if self._queue:
                yield self._queue.popleft()
            else:
                yield None
                self._sleep_until(self._poll_due_s)

    def _poll(self) -> None:
        try:
            self._queue.extend(self._with_room(self._camera.poll))
            self._health.state = RUNNING
        except OSError as error:
            self._health.state = "waiting for the folder"
            self._health.trouble(f"{self._folder}: cannot be listed ({error.strerror}). Waiting for it.")
        self._with_room(self._days.tend)
        now_s = time.monotonic()
        self._poll_due_s = now_s + self._camera.pause_s
        self._health.last_look, self._health.backlog = now(), len(self._queue)
        if self._webhook is not None:
            self._health.unsent = self._webhook.unsent
        if now_s - self._told_backlog_s >= BACKLOG_S:
            self._told_backlog_s = now_s
            if self._queue:
                log.warning("%d images wait", len(self._queue))

    def _take(self, result: Rendered | Unreadable) -> None:
        """Store a result; an image that may still become readable is tried again later."""
        if isinstance(result, Unreadable):
            if not os.path.lexists(result.path):
                log.warning("%s: was deleted before it was read", escaped(result.path))
                self._camera.forget(result.image_id)
                return
            if self._camera.again(result.image_id):
                return
            self._health.trouble(result.message)
            result = render_unreadable(result)
        record, image = result.record, result.record.image
        if self._webhook is not None and self._meets_rule is not None and self._meets_rule(record):
            day, webhook = day_of(image["modified_ns"]), self._webhook
            self._with_room(lambda: webhook.add(_sheet(day, image)))  # before the journal, so that none is missed
        self._with_room(lambda: self._days.write(result))
        self._camera.done(record.image_id, stamp_of(image))
        self._health.count(record.status, image["modified_ns"])
        self._check_bit_depth(result.brightest16)

    def _check_bit_depth(self, brightest16: int | None) -> None:
        if brightest16 is not None and self._brightest.total() < _ENOUGH_16_BIT:
            self._brightest[brightest16] += 1
            if self._brightest.total() == _ENOUGH_16_BIT:
                for warning in bit_depth_warnings(self._brightest):
                    self._health.trouble(warning)

    def _with_room(self, action: Callable[[], _Out]) -> _Out:
        """Do something, again and again while the disk is full. Raises its other errors, and that one if stopped."""
        while True:
            try:
                return action()
            except ResourceError as error:
                cause = error.__cause__
                is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
                if not is_full or self._stopped():
                    raise
                self._health.state, self._health.last_look = "waiting for room on the disk", now()
                self._health.trouble(f"{error} Waiting for room.")
                self._sleep_until(time.monotonic() + WAIT_S)
                self._health.state = RUNNING

    def _sleep_until(self, end_s: float) -> None:
        while not self._stopped() and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(SLEEP_S, left_s))


def _sheet(day: str, image: dict[str, Any]) -> dict[str, Any]:
    """What the webhook tells about a sheet."""
    names = ("classes", "regions", "defect_area_px", "top_score", "size_bytes", "modified_ns")
    return {"day": day, "image_id": image["ImageId"], **{name: image[name] for name in names}}
