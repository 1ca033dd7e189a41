"""The exception tree, with the exit code of each error.

DefectsegError                    1   never raised itself
├── UsageError                    2   an invalid flag, argument or combination
│   ├── ConfigError               2   an invalid recipe or change of one
│   └── OutputExistsError         2   a folder or file that would be overwritten
└── CannotContinueError           4   something needed is missing, unreadable or exhausted
    ├── DataError                 4   a data folder or one of its files
    │   ├── LabelError            4   a label table, its rows and run-lengths
    │   └── ImageError            4   one image; a batch records it and continues
    ├── ModelError                4   a model file, or weights that do not fit
    ├── MissingExtraError         4   a package that is not installed
    └── ResourceError             4   disk space, memory, device, a folder in use
"""

import re
from collections.abc import Callable, Mapping
from enum import IntEnum
from importlib.util import find_spec


class ExitCode(IntEnum):
    """Exit codes of every command. Where several apply: 4, then 10, 11 or 12, then 3."""

    DONE = 0
    BUG = 1
    USAGE = 2
    PARTIAL = 3
    CANNOT_CONTINUE = 4
    DEFECT_FOUND = 10
    DRIFT = 11
    NOT_MET = 12
    INTERRUPTED = 130


def _as_keyword(name: str, value: object) -> str:
    return name if value is None else f"{name}={value!r}"


spelling: Callable[[str, object], str] = _as_keyword
"""How messages spell an argument with its value, or alone if the value is None. The command line spells flags."""


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LONG_WORD = re.compile(r"([^\s/]{200})[^\s/]{300,}")  # no name of a file has so many


def printable(text: str) -> str:
    """A message without control characters, and with the long values cut that it quotes from a file; paths stay."""
    text = _UNPRINTABLE.sub(lambda sign: ascii(sign[0])[1:-1], _LONG_WORD.sub(r"\1...", text))
    return text if len(text) <= 6_000 else f"{text[:5_000]} ... {text[-500:]}"


class DefectsegError(Exception):
    """A mistake that a user can correct: the message says what is wrong, what was expected, and what to do.

    Args:
        message: text without command-line flags, because the caller may be Python code.
        argument: the keyword argument that the message is about.
        go_on: keyword arguments with which the same call would succeed.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, *, argument: str | None = None, go_on: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.argument = argument
        self.go_on = dict(go_on or {})

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).__new__, (type(self), *self.args), self.__dict__  # copies need no arguments of `__init__`

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.argument is not None:
            text = f"{spelling(self.argument, None)}: {text}"
        if self.go_on:
            text += f" Or go on with {' '.join(spelling(name, value) for name, value in self.go_on.items())}."
        return printable(text)


class UsageError(DefectsegError):
    """An invalid flag, argument or combination of them."""

    exit_code = ExitCode.USAGE


class ConfigError(UsageError):
    """An invalid recipe, or an invalid change of one of its keys."""


class OutputExistsError(UsageError):
    """A folder or file that exists and would be overwritten."""


class CannotContinueError(DefectsegError):
    """Something that the command needs is missing, unreadable or exhausted."""

    exit_code = ExitCode.CANNOT_CONTINUE


class DataError(CannotContinueError):
    """A data folder, or one of its files, that cannot be used."""


class LabelError(DataError):
    """An invalid label table, row or run-length."""


class ImageError(DataError):
    """One image that cannot be read completely. A batch records it and continues."""


class ModelError(CannotContinueError):
    """A model file or weights that cannot be used."""


class MissingExtraError(CannotContinueError):
    """A package that is not installed.

    Args:
        what: the feature that needs the package, as the subject of a sentence ("training").
        extra: the extra of `defectseg` that installs the package.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed. Run: pip install 'defectseg[{extra}]'")


class ResourceError(CannotContinueError):
    """Disk space or memory ran out, a device is missing, or another process uses a folder."""


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Raise MissingExtraError if one of the packages is not installed, without importing any."""
    if any(find_spec(package) is None for package in packages):
        raise MissingExtraError(what, extra)
