"""The tree of errors, as its docstring draws it."""

import pickle
import re

import pytest

from defectseg import errors
from defectseg.errors import DefectsegError, ExitCode, MissingExtraError, UsageError


def _drawn() -> list[tuple[int, str, int]]:
    """(depth, name, exit code) of each line of the drawing."""
    lines = re.findall(r"^([│├└─ ]*)(\w+Error) +(\d+)", errors.__doc__ or "", re.MULTILINE)
    return [(len(indent) // 4, name, int(code)) for indent, name, code in lines]


def _classes() -> dict[str, type[DefectsegError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, DefectsegError)
    }


def test_the_drawing_names_every_error_once() -> None:
    names = [name for _, name, _ in _drawn()]
    assert sorted(names) == sorted(_classes())


def test_each_error_has_the_parent_and_the_exit_code_that_are_drawn() -> None:
    classes = _classes()
    above: list[str] = []
    for depth, name, code in _drawn():
        above = above[:depth]
        if above:
            assert classes[name].__bases__ == (classes[above[-1]],)
        assert classes[name].exit_code == code
        above.append(name)


def test_every_error_has_a_docstring_of_its_own() -> None:
    assert all(kind.__doc__ and kind.__doc__ != "Exception" for kind in _classes().values())


def test_exit_codes_are_those_that_scripts_rely_on() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "BUG": 1,
        "USAGE": 2,
        "PARTIAL": 3,
        "CANNOT_CONTINUE": 4,
        "DEFECT_FOUND": 10,
        "INTERRUPTED": 130,
    }


def test_a_missing_extra_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match=r"^training needs .* pip install 'defectseg\[train\]'$"):
        raise MissingExtraError("training", "train")


def test_an_error_names_arguments_as_its_reader_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UsageError("expected 1 or more, found 0.", argument="workers", go_on={"overwrite": True})
    assert str(error) == "workers: expected 1 or more, found 0. Or go on with overwrite=True."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    monkeypatch.setattr(errors, "spelling", lambda name, value: f"--{name}")
    assert str(error) == "--workers: expected 1 or more, found 0. Or go on with --overwrite."
