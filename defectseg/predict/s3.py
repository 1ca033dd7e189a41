"""Images in an object store that speaks S3. The usual AWS_* variables name the endpoint and the credentials."""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from defectseg.errors import CannotContinueError, DataError, ResourceError, UsageError, require_extra
from defectseg.files import size_and_time
from defectseg.image.find import IMAGE_SUFFIXES, SUFFIXES_SHOWN, FoundImage, escaped, suffix_of, with_valid_ids
from defectseg.inference.tiles import in_order

SCHEME = "s3://"
_FETCHED_AHEAD = 16  # so that the network does not wait
# A store that does not answer is known soon; botocore's default is five attempts of a minute.
_PATIENCE = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2}}


@dataclass(frozen=True, order=True, slots=True)
class StoredImage(FoundImage):
    """An image in an object store: `file` is its address, s3://bucket/key, or that of a copy; the rest is as listed."""

    size_bytes: int = 0
    modified_ns: int = 0

    @property
    def shown(self) -> str:
        """The address in tables and messages."""
        return escaped(self.file)

    @property
    def stamp(self) -> tuple[int, int]:
        """See FoundImage."""
        return self.size_bytes, self.modified_ns


def find_stored(addresses: Sequence[str], *, recursive: bool = True) -> list[FoundImage]:
    """List the images below s3://bucket/prefix, sorted by ImageId, which is the key relative to the prefix.

    As in a folder, hidden objects (a part of the key begins with a dot) and those with another suffix are left out, and
    so are those with an empty part, which have no name in a folder.

    Raises:
        UsageError: more than one address, or one without a bucket.
        DataError: there is no image.
        CannotContinueError: it cannot be listed: no such bucket, endpoint or permission.
    """
    bucket, _, prefix = addresses[0].removeprefix(SCHEME).partition("/")
    if len(addresses) > 1 or not bucket:
        raise UsageError(f"{addresses[-1]}: expected one INPUT, {SCHEME}bucket or {SCHEME}bucket/prefix, and no other.")
    require_extra("reading an object store", "ray", "s3fs")
    where = f"{SCHEME}{bucket}/{prefix.strip('/')}{'/' * bool(prefix.strip('/'))}"
    images: list[FoundImage] = []
    for entry in _listed(bucket, where.removeprefix(f"{SCHEME}{bucket}/"), where):
        file = f"{SCHEME}{bucket}/{entry['Key']}"
        parts = file.removeprefix(where).split("/")
        is_plain = all(part and not part.startswith(".") for part in parts) and (recursive or len(parts) == 1)
        if is_plain and suffix_of(file) in IMAGE_SUFFIXES:
            time_ns = int(entry["LastModified"].timestamp()) * 10**9
            images.append(StoredImage("/".join(parts), file, "", entry["Size"], time_ns))
    if not images:
        raise DataError(f"No image in {where}. Objects that count have keys that end in {SUFFIXES_SHOWN}.")
    return with_valid_ids(images)


def _listed(bucket: str, prefix: str, where: str) -> Iterator[dict[str, Any]]:
    """The objects below a prefix, page by page, since those of a large bucket would fill much memory."""
    import s3fs

    more: dict[str, str] = {}
    try:
        store = s3fs.S3FileSystem(config_kwargs=_PATIENCE, skip_instance_cache=True)
        store.retries = 1  # botocore has tried again
        while True:
            page = store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}
    except Exception as error:  # OSError, and those of botocore, which have no base class with it
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
        advice = "Check the bucket, AWS_ENDPOINT_URL, the region, and the credentials, e.g. AWS_ACCESS_KEY_ID"
        raise CannotContinueError(f"{where}: cannot be listed at {endpoint} ({_reason(error)}). {advice}.") from error


@contextmanager
def fetched(images: Sequence[FoundImage]) -> Iterator[Iterable[FoundImage]]:
    """Copies of stored images, fetched ahead of the reader and deleted at the end, or with a fault; others as they are.

    Raises:
        ResourceError: the disk is full.
    """
    if not images or not isinstance(images[0], StoredImage):
        yield images
        return
    import s3fs

    store = s3fs.S3FileSystem(skip_instance_cache=True)
    with TemporaryDirectory(prefix="defectseg-") as folder, ThreadPoolExecutor(_FETCHED_AHEAD) as pool:

        def fetch(numbered: tuple[int, FoundImage]) -> FoundImage:
            number, image = numbered
            file, fault = f"{folder}/{number}", ""
            try:
                store.get_file(image.file, file)
                if size_and_time(file)[0] != image.stamp[0]:
                    fault = f"{image.shown}: changed since it was listed. Run the same command again."
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ResourceError(f"{folder}: no space left for a copy of {image.shown}. Free some.") from error
                fault = f"{image.shown}: cannot be read ({_reason(error)})."
            return replace(image, where=file, fault=image.fault or fault)

        yield in_order(pool, fetch, enumerate(images), most=_FETCHED_AHEAD)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
