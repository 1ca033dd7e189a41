"""`defectseg watch`: images are handled as a camera writes them."""

import errno
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from defectseg import errors
from defectseg.errors import DataError, OutputExistsError, ResourceError, UsageError
from defectseg.files import are_nested, check_is_free, folder_lock, write_text
from defectseg.image.find import FoundImage
from defectseg.image.read import bit_depth_warnings
from defectseg.inference.stream import Unreadable, stream
from defectseg.machine import now
from defectseg.predict.camera import Camera
from defectseg.predict.days import Days, day_of, stamp_of
from defectseg.predict.health import Health
from defectseg.predict.output import refuse_other_key
from defectseg.predict.predict import Loaded
from defectseg.predict.render import Rendered, render, render_unreadable
from defectseg.predict.rules import Rules
from defectseg.predict.tables import OutputChoice
from defectseg.predict.webhook import Webhook, check_address
from defectseg.text import read_json

log = logging.getLogger(__name__)

BACKLOG_S = 60.0
FULL_S = 1.0  # between two tries to write to a full disk
NOTICE_S = 0.1  # until a request to stop is noticed
_ENOUGH_16_BIT = 20  # images, to judge their bit depth
_MARK, _HEALTH, _OUTBOX = "watch.json", "health.json", "webhook.jsonl"
_TOLD = ("ImageId", "classes", "regions", "defect_area_px", "top_score", "size_bytes", "modified_ns")  # about a sheet


def check_folders(folder: Path, out: Path) -> None:
    """Refuse to watch a folder that is not there (DataError), or that holds its own results (UsageError)."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Name the one that the camera writes into.")
    if are_nested(folder, out):
        raise UsageError(f"{out} has to be outside of the watched folder {folder}, and not around it.", argument="out")


def watch(
    loaded: Loaded,
    folder: Path,
    out: Path,
    choice: OutputChoice,
    *,
    fail_on: str | None = None,
    webhook: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Process the images of a folder as they come, until `stopped` says True.

    An image is its name, size and time. Its results are in the output folder of its day, `out`/YYYY-MM-DD, which is one
    of `predict`. Images that have results there are not processed again.

    Args:
        loaded: the model.
        folder: what is watched, with its subfolders; see `check_folders`.
        out: folder for the days and for health.json.
        choice: the outputs to write.
        fail_on: rules that say which sheets the webhook is told about; see `Rules`. One needs the other.
        webhook: an address.
        stopped: asked several times a second; then the images in work are finished, and the tables are written.

    Returns:
        the content of health.json.

    Raises:
        OutputExistsError: `out` contains something else, or results of another model or other settings.
        DataError, UsageError: see `check_folders`, `check_address` and `Rules.parse`.
        ModelError, ResourceError: it cannot go on; the same call continues.
    """
    check_folders(folder, out)
    rules = None
    if fail_on is not None or webhook is not None:
        rules = _rules(fail_on, webhook, loaded, choice)
    with folder_lock(out), ExitStack() as stack:
        _check_own(out, json.loads(json.dumps({**loaded.key, "outputs": choice.stored})))
        health = stack.enter_context(closing(Health(out / _HEALTH, started=now(), folder=str(folder))))
        try:
            days = stack.enter_context(closing(Days(out, loaded, choice)))
            sender = None
            if webhook is not None:
                sender = stack.enter_context(closing(Webhook(out / _OUTBOX, webhook, health.trouble)))
            log.info("watching %s; results by day in %s", folder, out)
            camera = Camera(folder, days.handled, health.trouble)
            _Watch(loaded, choice, camera, days, health, sender, rules, stopped).run()
            health.told["state"] = "stopped"
        except BaseException as error:
            health.told["state"] = "failed"
            health.told["last_error"] = {"time": now(), "message": str(error) or type(error).__name__}
            raise
    return health.content()


def _rules(fail_on: str | None, webhook: str | None, loaded: Loaded, choice: OutputChoice) -> Rules:
    if fail_on is None or webhook is None:
        given, missing = ("fail_on", "webhook") if webhook is None else ("webhook", "fail_on")
        raise UsageError(f"needs {errors.spelling(missing, None)}, and the other way round.", argument=given)
    check_address(webhook)
    return Rules.parse(fail_on, loaded.network.class_names, choice, loaded.key["only_classes"])


def _check_own(out: Path, key: dict[str, Any]) -> None:
    """Mark a new folder with the key of its results; refuse a foreign one, and one with another key."""
    mark = out / _MARK
    if not mark.exists():
        check_is_free(out, (_HEALTH, _OUTBOX), writer="watch")
        write_text(mark, json.dumps(key, indent=2) + "\n")
    try:
        refuse_other_key(out, read_json(mark), key)
    except (DataError, AttributeError):
        raise OutputExistsError(f"{mark}: not as watch writes it. Choose another output folder.") from None


@dataclass
class _Watch:
    """The loop of `watch`, whose arguments and parts these are."""

    loaded: Loaded
    choice: OutputChoice
    camera: Camera
    days: Days
    health: Health
    webhook: Webhook | None
    rules: Rules | None
    stopped: Callable[[], bool]
    queue: deque[FoundImage] = field(default_factory=deque)  # images that are complete
    brightest: Counter[int | None] = field(default_factory=Counter)
    poll_due_s: float = 0.0
    backlog_due_s: float = field(default_factory=lambda: time.monotonic() + BACKLOG_S)

    def run(self) -> None:
        """Handle images until it is stopped."""
        network, settings = self.loaded.network, self.loaded.settings
        paint = partial(render, class_names=network.class_names, choice=self.choice, trained=settings.appearance)
        self.days.resume()
        with closing(stream(self._images(), network, settings, paint)) as results:
            for result in results:
                self._take(result)
        self._tell_backlog()
        self.days.finish()

    def _images(self) -> Iterator[FoundImage | None]:
        """Complete images, the oldest first; None while there are none, so that the stream holds no result back."""
        while not self.stopped():
            if time.monotonic() >= self.poll_due_s:
                self._tell_backlog()  # before the look, which adds those that do not wait yet
                self._with_room(self._poll)
                self._with_room(self.days.tend)
                self.poll_due_s = time.monotonic() + self.camera.pause_s
            if self.queue:
                yield self.queue.popleft()
            else:
                yield None
                self._sleep_until(self.poll_due_s)

    def _poll(self) -> None:
        try:
            self.queue.extend(self.camera.poll())
            self.health.told["state"] = "running"
        except OSError as error:
            self.health.told["state"] = "waiting for the folder"
            self.health.trouble(f"{error.filename}: {error.strerror}. Waiting for it.")

    def _tell_backlog(self) -> None:
        unsent = len(self.webhook.unsent) if self.webhook else 0
        self.health.told |= {"last_look": now(), "backlog": len(self.queue), "webhook_unsent": unsent}
        if time.monotonic() >= self.backlog_due_s:
            self.backlog_due_s = time.monotonic() + BACKLOG_S
            if self.queue:
                log.warning("%d images wait for their turn", len(self.queue))

    def _take(self, result: Rendered | Unreadable) -> None:
        """Store a result; an image that may still become readable is tried again later."""
        if isinstance(result, Unreadable):
            if not os.path.lexists(result.path):
                self.camera.gone(result.image_id, str(result.path))
                return
            if self.camera.again(result.image_id):
                return
            self.health.trouble(result.message)
            result = render_unreadable(FoundImage(result.image_id, str(result.path)), result.message)
        record, image = result.record, result.record.image
        if self.webhook and self.rules and self.rules.met_by(record):
            sheet = {"day": day_of(image["modified_ns"]), **{name: image[name] for name in _TOLD}}
            self._with_room(partial(self.webhook.add, sheet))  # before the result, so that none is missed
        self._with_room(partial(self.days.write, result))
        self.camera.done(record.image_id, stamp_of(image))
        self.health.count(record.status, image["modified_ns"])
        if result.brightest16 is not None and self.brightest.total() < _ENOUGH_16_BIT:
            self.brightest[result.brightest16] += 1
            for warning in bit_depth_warnings(self.brightest) if self.brightest.total() == _ENOUGH_16_BIT else ():
                self.health.trouble(warning)

    def _with_room(self, action: Callable[[], None]) -> None:
        """Do something, again and again while the disk is full. Raises its other errors, and this one if stopped."""
        while True:
            try:
                return action()
            except ResourceError as error:
                cause = error.__cause__
                is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
                if not is_full or self.stopped():
                    raise
                self.health.told |= {"state": "waiting for room on the disk", "last_look": now()}
                self.health.trouble(f"{error} Waiting for that.")
                self._sleep_until(time.monotonic() + FULL_S)

    def _sleep_until(self, end_s: float) -> None:
        while not self.stopped() and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(NOTICE_S, left_s))
