"""A folder's lock is exclusive at its two delicate moments, which depends on the version of filelock."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from defectseg.errors import ResourceError
from defectseg.files import LOCK_NAME, folder_lock

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not delete an open file")


def test_a_process_that_ends_leaves_the_lock_of_the_next_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, unlink = FileLock(tmp_path / LOCK_NAME), Path.unlink

    def unlink_and_lose(path: Path, **options: Any) -> None:
        unlink(path, **options)
        if path.name == LOCK_NAME and not other.is_locked:
            other.acquire(timeout=0)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_and_lose)
        with folder_lock(tmp_path):
            pass
    assert other.is_locked
    with pytest.raises(ResourceError, match="another defectseg writes there"), folder_lock(tmp_path):
        pass
    other.release()


def test_a_lock_on_a_file_that_was_deleted_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, late, opened = ExitStack(), FileLock(tmp_path / LOCK_NAME), os.open
    holder.enter_context(folder_lock(tmp_path))

    def open_then_let_go(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = opened(path, *arguments, **options)
        if Path(path).name == LOCK_NAME:
            monkeypatch.setattr(os, "open", opened)
            holder.close()  # after the file is open, before it is locked
        return descriptor

    monkeypatch.setattr(os, "open", open_then_let_go)
    try:
        late.acquire(timeout=0)
    except Timeout:
        return  # it noticed, and the caller may try again
    with pytest.raises(ResourceError, match="another defectseg writes there"), folder_lock(tmp_path):
        pass
    late.release()
