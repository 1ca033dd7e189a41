"""A process of the Ray engine on some machine: it holds the model, segments images and writes their pictures."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from defectseg import errors, machine
from defectseg.errors import DefectsegError, ResourceError
from defectseg.image.find import FoundImage
from defectseg.image.limits import allow_pixels
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.inference.tiles import in_order
from defectseg.model.locate import model_identity
from defectseg.predict.output import write_pictures
from defectseg.predict.render import Rendered, render
from defectseg.predict.s3 import fetch, open_store
from defectseg.predict.tables import OutputChoice
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime

_HERE = socket.gethostname()
_FETCHED_AHEAD = 16  # images from an object store, so that the network does not wait for it

Done = Rendered | Unreadable
Batch = Sequence[tuple[FoundImage, Mapping[str, Path]]]  # with the paths of its pictures, see OutputFolder


@dataclass(frozen=True)
class Setup:
    """What a process needs to do as the command itself would.

    Attributes:
        models, device, runtime: see `load_runtime`.
        identity: of the models, see `model_identity`.
        cores: the number of cores to use.
        folder: the working folder of the command, to which paths are relative.
        versions: of packages; they have to be the same on all machines, since results depend on them.
        allowed_pixels, allowed_gb: limits for files that are made to hurt.
        spelling: see `errors.spelling`.
        environment: variables for the object store.
    """

    models: tuple[Path, ...]
    device: str
    runtime: str
    identity: str
    cores: int
    folder: str
    versions: Mapping[str, str]
    allowed_pixels: int
    allowed_gb: float
    spelling: Callable[[str, object], str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """What is the same for all images of a run. `seen`: files that the command sees, as each machine has to."""

    settings: Settings
    choice: OutputChoice
    are_stored: bool
    seen: tuple[Path, ...]


@dataclass(frozen=True)
class Answer:
    """The results of a batch, in order; the error that ended it early, if any; the name of the runtime."""

    results: Sequence[Done]
    error: DefectsegError | None
    name: str


class Worker:
    """The process. A user's mistake is returned, since what Ray makes of a raised error is not for people."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._runtime: Runtime | None = None

    def work(self, job: Job | None, batch: Batch) -> Answer:
        """Segment images and write their pictures, after loading the model if need be. Without a job, only load it."""
        done: list[Done] = []
        error = None
        try:
            self._runtime = self._runtime or self._load()
            if job is not None:
                _check_sees(job.seen)
                done.extend(_segmented(self._runtime, job, batch))
        except DefectsegError as problem:
            error = problem
        return Answer(done, error, self._runtime.name if self._runtime else "")

    def _load(self) -> Runtime:
        """Load the model. Raises DefectsegError if that fails, or this machine is not as that of the command."""
        setup = self._setup
        with suppress(OSError):  # another machine may not have it; relative paths are then not found
            os.chdir(setup.folder)
        os.environ.update(setup.environment)
        errors.spelling = setup.spelling
        allow_pixels(setup.allowed_pixels)
        machine.allow_gb(setup.allowed_gb)
        machine.use_cores(setup.cores)
        versions = {**machine.package_versions(tuple(setup.versions)), "defectseg": machine.__version__}
        if versions != setup.versions:
            raise ResourceError(f"{_HERE}: has {versions}, not {setup.versions}. Install the same on all machines.")
        _check_sees(setup.models)
        if model_identity(setup.models) != setup.identity:
            raise ResourceError(f"{_HERE}: sees another file at {setup.models[0]} than the machine of the command.")
        return load_runtime(setup.models, setup.device, setup.runtime)[0]


def _segmented(runtime: Runtime, job: Job, batch: Batch) -> Iterator[Done]:
    """The results of a batch, their pictures written."""
    originals = {image.image_id: image for image, _ in batch}
    paths = {image.image_id: paths for image, paths in batch}

    def write(one: Segmented) -> Rendered:
        if job.are_stored:
            one = replace(one, stamp=originals[one.found.image_id].stamp)
        rendered = render(one, runtime.class_names, job.choice)
        write_pictures(paths[one.found.image_id], rendered.pictures)
        return replace(rendered, pictures=dict.fromkeys(rendered.pictures, b""), are_written=True)

    given = list(originals.values())
    with (
        _fetched(given) if job.are_stored else nullcontext(given) as images,
        closing(stream(images, runtime, job.settings, write)) as results,
    ):
        for result in results:
            if job.are_stored and isinstance(result, Unreadable):  # told of the copy
                name = originals[result.image_id].shown
                result = replace(result, message=result.message.replace(str(result.path), name))
            yield result


@contextmanager
def _fetched(images: Sequence[FoundImage]) -> Iterator[Iterable[FoundImage]]:
    """Copies of images of an object store, fetched ahead of the reader; deleted at the end."""
    store = open_store()
    with TemporaryDirectory(prefix="defectseg-") as folder, ThreadPoolExecutor(_FETCHED_AHEAD) as pool:
        paths = (Path(folder, str(number)) for number in range(len(images)))
        pairs = zip(images, paths, strict=True)
        yield in_order(pool, lambda pair: fetch(store, *pair), pairs, most=_FETCHED_AHEAD)


def _check_sees(paths: Iterable[Path]) -> None:
    """Raise ResourceError if this machine does not see one of the files."""
    for path in paths:
        if not path.exists():
            raise ResourceError(
                f"{_HERE}: does not see {path}. All machines of the cluster have to see model, images and output "
                "folder under the same path, as on a network share."
            )
