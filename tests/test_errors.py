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


def test_each_error_has_the_parent_and_the_exit_code_that_are_drawn() -> None:
    classes = {name: value for name, value in vars(errors).items() if name.endswith("Error")}
    above: list[str] = []
    for depth, name, code in _drawn():
        above = above[:depth]
        if above:
            assert classes[name].__bases__ == (classes[above[-1]],)
        assert classes[name].exit_code == code
        above.append(name)
    assert sorted(name for _, name, _ in _drawn()) == sorted(classes)


def test_exit_codes_are_those_that_scripts_rely_on() -> None:
    names = ("DONE", "BUG", "USAGE", "PARTIAL", "CANNOT_CONTINUE", "DEFECT_FOUND", "DRIFT", "NOT_MET")
    assert {code.name: int(code) for code in ExitCode} == {
        **dict(zip(names, (0, 1, 2, 3, 4, 10, 11, 12), strict=True)),
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


def test_what_a_message_quotes_from_a_file_is_cut_and_made_printable_but_no_path_is() -> None:
    path = "/".join(["x" * 255, "y" * 255, "a b.csv"])
    told = str(DefectsegError(f"{path}: {'9' * 90_000} \x1b[31m \ud800"))
    assert told == f"{path}: {'9' * 200}... \\x1b[31m \\ud800"
    assert len(str(DefectsegError(f"expected {', '.join(['c'] * 100_000)}, found none"))) < 6_000
