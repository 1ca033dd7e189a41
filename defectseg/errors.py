"""What can go wrong, and the exit code of each.

DefectsegError                    1   never raised itself
├── UsageError                    2   a flag, argument or combination that makes no sense
│   ├── ConfigError               2   a recipe, or a change of one, that is not valid
│   └── OutputExistsError         2   a folder or file that would be overwritten
└── CannotContinueError           4   something needed is missing, unreadable or exhausted
    ├── DataError                 4   a data folder or one of its files
    │   ├── LabelError            4   a label table, its rows and run-lengths
    │   └── ImageError            4   one image; in a batch it is recorded and the batch goes on
    ├── ModelError                4   a model file, or weights that do not fit
    ├── MissingExtraError         4   a package that is not installed
    └── ResourceError             4   disk space, memory, device, a folder in use
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from importlib.util import find_spec


class ExitCode(IntEnum):
    """Exit codes of every command. Where several apply: 4, then 10, then 3."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PARTIAL = 3
    CANNOT_CONTINUE = 4
    DEFECT_FOUND = 10
    INTERRUPTED = 130


def _as_keyword(name: str, value: object) -> str:
    return name if value is None else f"{name}={value!r}"


spelling: Callable[[str, object], str] = _as_keyword
"""How messages spell an argument with its value, or alone if the value is None. The command line spells flags."""


class DefectsegError(Exception):
    """A mistake that a user can mend: the message names the thing, what was expected, and what to do.

    Args:
        message: for people. It speaks of no command-line flag, since Python code may have called.
        argument: the keyword argument that the message is about.
        go_on: keyword arguments with which the same call would go on all the same.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, argument: str | None = None, go_on: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.argument = argument
        self.go_on = dict(go_on or {})

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.argument is not None:
            text = f"{spelling(self.argument, None)}: {text}"
        if self.go_on:
            text += f" Or go on with {' '.join(spelling(name, value) for name, value in self.go_on.items())}."
        return text


class UsageError(DefectsegError):
    """A flag, an argument or a combination of them that makes no sense."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """A recipe, or a change of one of its keys, that is not valid."""


class OutputExistsError(UsageError):
    """A folder or file that is already there and would be overwritten."""


class CannotContinueError(DefectsegError):
    """Something that the command needs is missing, unreadable or exhausted."""

    exit_code = ExitCode.CANNOT_CONTINUE


class DataError(CannotContinueError):
    """A data folder, or one of its files, that cannot be used."""


class LabelError(DataError):
    """A label table, one of its rows, or a run-length that is not valid."""


class ImageError(DataError):
    """One image that cannot be read whole. In a batch it is recorded and the batch goes on."""


class ModelError(CannotContinueError):
    """A model file or weights that cannot be used."""


class MissingExtraError(CannotContinueError):
    """A package that this installation lacks.

    Args:
        what: what needs the package, as the subject of a sentence ("training").
        extra: the name of the extra of `defectseg` that brings the package.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed. Run: pip install 'defectseg[{extra}]'")


class ResourceError(CannotContinueError):
    """Disk space, memory or a device ran out or is not there, or a folder is in use by another job."""


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Raise MissingExtraError where one of the packages is not installed; nothing is imported."""
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(what, extra)
