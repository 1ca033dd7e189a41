"""The Ray engine: processes on the machines of a cluster segment images; this process alone writes journal and tables.

The processes are Ray's actors, used without Ray Data: that added 12 ms to each task of 20 ms in a measurement, brings
pandas, and gives results only once a block of them is full. If a process dies, Ray starts another and repeats its task.
"""

import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from defectseg import errors, machine
from defectseg.errors import CannotContinueError, ResourceError
from defectseg.files import TEMPORARY_PREFIX, resource_errors
from defectseg.image.find import FoundImage
from defectseg.image.limits import allow_pixels, allowed_pixels
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.model.info import read_model_info
from defectseg.model.locate import as_paths, model_identity
from defectseg.predict.output import OutputFolder, write_pictures
from defectseg.predict.render import Rendered, render
from defectseg.predict.s3 import fetched
from defectseg.predict.tables import OutputChoice
from defectseg.runtime.base import Runtime
from defectseg.runtime.ensemble import join_infos
from defectseg.runtime.load import AUTO, TORCH, choose_runtime, is_bundle, load_runtime, versions_of

log = logging.getLogger(__name__)

_BATCH = 64  # images that a process gets at once; fewer if there are few for each
_RETRIES = 3
_PATIENCE_S = 60
_HERE = socket.gethostname()

Done = Rendered | Unreadable
Batch = Sequence[tuple[FoundImage, Mapping[str, Path]]]  # with the paths of its pictures, see OutputFolder


@dataclass(frozen=True)
class Job:
    """What is the same for all images of a run. `seen`: files that the command sees, as each machine has to."""

    settings: Settings
    choice: OutputChoice
    seen: tuple[Path, ...]


class RayCluster:
    """The cluster that RAY_ADDRESS names, or one on this machine, with as many processes that hold a model as fit.

    Where work waits, more are asked for, up to twice as many as have begun, so that a cluster can grow on demand.

    Attributes:
        info: the description of the model.
        class_names: of the model.
        device: cuda or cpu.
        name: of the runtime.
        parallel: cores of each process.
    """

    def __init__(self, models: Path | Sequence[Path], device: str, runtime: str, *, cores_each: int = 1) -> None:
        """Connect to the cluster, or start it, and let it load a model.

        Args:
            models, device, runtime: see `load_runtime`; auto takes the graphics cards of the cluster, if it has any.
            cores_each: cores of each process. With one, the most images are done; with more, memory holds fewer models.

        Raises:
            CannotContinueError: no cluster answers, or the first process cannot start.
            DefectsegError: it cannot load the model.
        """
        paths = as_paths(models)
        infos = [read_model_info(path) for path in paths]
        self.info = join_infos(infos, paths)
        self.class_names = self.info.class_names
        self.name, self.parallel = "", cores_each
        _connect()
        if device == AUTO:
            may_use_card = runtime in (AUTO, TORCH) and all(map(is_bundle, paths))
            device = "cuda" if may_use_card and ray.cluster_resources().get("GPU") else "cpu"
        self.device = device
        self._needs = {"CPU": cores_each, "GPU": int(device.startswith("cuda"))}
        options = {"num_cpus": cores_each, "num_gpus": self._needs["GPU"]}
        self._start_process = partial(
            ray.remote(max_restarts=-1, max_task_retries=_RETRIES, **options)(Worker).remote,
            models=paths,
            device=device,
            runtime=runtime,
            identity=model_identity(paths),
            cores=cores_each,
            folder=str(Path.cwd()),
            versions=versions_of(choose_runtime(path, device, runtime) for path in paths),
            limits=(allowed_pixels(), machine.allowed_bytes() / 2**30),
            spelling=errors.spelling,
            environment={name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        )
        self._busy: dict[Any, tuple[Any, Sequence[FoundImage]]] = {}  # future answer -> process and its images
        self._begun = 0
        self._start(max(1, self._room()))
        self._first = self._next()[0]

    def close(self) -> None:
        """Stop the processes, and the cluster if it was started here."""
        ray.shutdown()

    def rendered(
        self, images: Sequence[FoundImage], settings: Settings, output: OutputFolder
    ) -> Generator[tuple[FoundImage, Done], None, None]:
        """Segment images and write their pictures. Yields each image with its result, as they come.

        At the end, the journal is sorted, so that it is as the local engine writes it.

        Raises:
            DefectsegError: as `run_batch`, or a machine does not see the files, or its processes die again and again.
        """
        size = max(1, min(_BATCH, len(images) // (4 * max(1, self._room()))))
        todo = deque(images[begin : begin + size] for begin in range(0, len(images), size))
        left, process = len(todo), self._first
        with resource_errors(output.root), NamedTemporaryFile(dir=output.root, prefix=TEMPORARY_PREFIX) as marker:
            samples = (image.path for image in images[:_BATCH] if image.path.exists())
            job = ray.put(Job(settings, output.choice, (Path(marker.name), *islice(samples, 1))))
            while left:
                if todo:
                    batch = [(image, output.picture_paths(image.image_id)) for image in todo[0]]
                    self._busy[process.work.remote(job, batch)] = process, todo.popleft()
                    grown = 2 * self._begun if "RAY_ADDRESS" in os.environ else 0
                    self._start(min(len(todo), max(self._room(), grown) - len(self._busy)))
                else:
                    ray.kill(process)  # another may need its place to be started again
                process, done, results = self._next()
                left -= bool(done)
                yield from zip(done, results, strict=True)
        output.journal.write_sorted()

    def _start(self, count: int) -> None:
        for _ in range(count):
            process = self._start_process()
            self._busy[process.work.remote(None, ())] = process, ()

    def _room(self) -> int:
        """The number of processes that fit into the cluster as it is."""
        has = ray.cluster_resources()
        return min(int(has.get(kind, 0) // count) for kind, count in self._needs.items() if count)

    def _next(self) -> tuple[Any, Sequence[FoundImage], Sequence[Done]]:
        """Wait for a process that has loaded the model or done its images. Returns it, these, and their results."""
        while not (ready := ray.wait(list(self._busy), timeout=_PATIENCE_S)[0]):
            if not self._begun:
                log.warning("no machine of the cluster has had %s to spare so far; see `ray status`", self._needs)
        process, images = self._busy.pop(ready[0])
        try:
            name, results = ray.get(ready[0])
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            over = f"over {images[0].shown} to {images[-1].shown}" if images else "before it began"
            why = f"({str(error).strip().splitlines()[-1]}). Memory may be short, or a machine lack defectseg[ray]"
            raise ResourceError(f"a process of Ray died {_RETRIES + 1} times {over} {why}: see Ray's logs.") from error
        self._begun += not images
        if name != (self.name or name) and not images:
            log.warning("some machines compute with %s, some with %s; results may differ", self.name, name)
        self.name = self.name or name
        return process, images, results


def _connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one here. Raises CannotContinueError."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address = os.environ.get("RAY_ADDRESS") or "local"
    # The store is for results on their way; images do not go through Ray.
    own = {"num_cpus": machine.cores(), "include_dashboard": False, "object_store_memory": 128 * 2**20}
    before = signal.getsignal(signal.SIGTERM)
    try:
        host, colon, port = address.rpartition(":")
        if colon:  # Ray itself would try for a minute and a half
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **(own if address == "local" else {}))
    except (Exception, SystemExit) as error:  # Ray's own, if it does not start in time, is an Exception and no more
        detail = " ".join(str(error).split())[:300]
        if address == "local":
            told = f"Ray did not start on this machine ({detail}). If it is overloaded, run the same command later."
            raise CannotContinueError(told) from error
        why = f"no Ray cluster answers ({detail}). Expected HOST:PORT of its head, or auto"
        advice = "on one of its machines; and RAY_AUTH_MODE=token if it asks for a token"
        raise CannotContinueError(f"RAY_ADDRESS={address}: {why} {advice}.") from error
    finally:
        with suppress(ValueError):  # in another thread, where Ray has not set its own, which ends without a word
            signal.signal(signal.SIGTERM, before)


# In the processes on the machines of the cluster


@dataclass
class Worker:
    """The process.

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

    def work(self, job: Job | None, batch: Batch) -> tuple[str, list[Done]]:
        """Segment images and write their pictures, after loading the model if need be. Without a job, only load it.

        Returns:
            the name of the runtime; the results.

        Raises:
            DefectsegError: as `stream`, or this machine is not as that of the command.
        """
        self._loaded = self._loaded or self._load()
        return self._loaded.name, [] if job is None else _segmented(self._loaded, job, batch)

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


def _segmented(runtime: Runtime, job: Job, batch: Batch) -> list[Done]:
    """The results of a batch, their pictures written."""
    _check_sees(job.seen)
    images, paths = [image for image, _ in batch], {image.image_id: paths for image, paths in batch}

    def write(one: Segmented) -> Rendered:
        rendered = render(one, runtime.class_names, job.choice, job.settings.appearance)
        write_pictures(paths[one.found.image_id], rendered.pictures or {})
        return replace(rendered, pictures=None)

    with fetched(images) as given, closing(stream(given, runtime, job.settings, write)) as results:
        return [
            replace(result, message=result.message.replace(str(result.path), image.file))  # not that of a copy
            if isinstance(result, Unreadable)
            else result
            for image, result in zip(images, results, strict=True)
        ]


def _check_sees(paths: Iterable[Path]) -> None:
    """Raise ResourceError if this machine does not see one of the files."""
    for path in paths:
        if not path.exists():
            raise ResourceError(
                f"{_HERE}: does not see {path}. All machines of the cluster have to see model, images and output "
                "folder under the same path, as on a network share."
            )
