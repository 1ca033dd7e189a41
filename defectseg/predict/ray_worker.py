"""A process of the Ray engine on some machine: it holds the model, segments images and writes their pictures."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from defectseg import errors, machine
from defectseg.errors import DefectsegError, ResourceError
from defectseg.image.find import FoundImage
from defectseg.image.limits import allow_pixels
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.model.locate import model_identity
from defectseg.predict.output import write_pictures
from defectseg.predict.render import Rendered, render
from defectseg.predict.s3 import fetched
from defectseg.predict.tables import OutputChoice
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime

_HERE = socket.gethostname()

Done = Rendered | Unreadable
Batch = Sequence[tuple[FoundImage, Mapping[str, Path]]]  # with the paths of its pictures, see OutputFolder


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


@dataclass
class Worker:
    """The process. A user's mistake is returned, since what Ray makes of a raised error is not for people.

    Attributes:
        models, device, runtime: see `load_runtime`.
        identity: of the models, see `model_identity`.
        cores: the number of cores to use.
        folder: the working folder of the command, to which paths are relative.
        versions: of packages; they have to be the same on all machines, since results depend on them.
        limits: the most pixels of an image and GB of a file, see `allow_pixels` and `allow_gb`.
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
    limits: tuple[int, float]
    spelling: Callable[[str, object], str]
    environment: Mapping[str, str]
    _loaded: Runtime | None = None

    def work(self, job: Job | None, batch: Batch) -> Answer:
        """Segment images and write their pictures, after loading the model if need be. Without a job, only load it."""
        done: list[Done] = []
        error = None
        try:
            self._loaded = self._loaded or self._load()
            if job is not None:
                _check_sees(job.seen)
                done.extend(_segmented(self._loaded, job, batch))
        except DefectsegError as problem:
            error = problem
        return Answer(done, error, self._loaded.name if self._loaded else "")

    def _load(self) -> Runtime:
        """Load the model. Raises DefectsegError if that fails, or this machine is not as that of the command."""
        with suppress(OSError):  # another machine may not have it; relative paths are then not found
            os.chdir(self.folder)
        os.environ.update(self.environment)
        errors.spelling = self.spelling
        allow_pixels(self.limits[0])
        machine.allow_gb(self.limits[1])
        machine.most_cores = self.cores
        versions = {**machine.package_versions(tuple(self.versions)), "defectseg": machine.__version__}
        if versions != self.versions:
            raise ResourceError(f"{_HERE}: has {versions}, not {self.versions}. Install the same on all machines.")
        _check_sees(self.models)
        if model_identity(self.models) != self.identity:
            raise ResourceError(f"{_HERE}: sees another file at {self.models[0]} than the machine of the command.")
        return load_runtime(self.models, self.device, self.runtime)[0]


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
        fetched(given) if job.are_stored else nullcontext(given) as images,
        closing(stream(images, runtime, job.settings, write)) as results,
    ):
        for result in results:
            if job.are_stored and isinstance(result, Unreadable):  # told of the copy
                name = originals[result.image_id].shown
                result = replace(result, message=result.message.replace(str(result.path), name))
            yield result


def _check_sees(paths: Iterable[Path]) -> None:
    """Raise ResourceError if this machine does not see one of the files."""
    for path in paths:
        if not path.exists():
            raise ResourceError(
                f"{_HERE}: does not see {path}. All machines of the cluster have to see model, images and output "
                "folder under the same path, as on a network share."
            )
