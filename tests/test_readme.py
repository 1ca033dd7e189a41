"""What README, CONTRIBUTING and the pages of docs/ say is there: commands, flags, recipes, files, exit codes."""

import re
import runpy
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer.main

from defectseg.cli.main import app
from defectseg.config import load_recipe, shipped_recipes
from defectseg.errors import ExitCode
from defectseg.predict.tables import TABLES

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
SCRIPTS = [
    path for path in sorted((ROOT / "scripts").rglob("*")) if path.suffix in ("", ".py", ".sh") and path.is_file()
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def shown_lines(name: str) -> list[str]:
    """The lines of the bash blocks of a document, its indented commands, and the examples in the help of commands."""
    text = read(name).replace("\\\n", "")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    examples = re.findall(r"^  [A-Z][^.:]*: (defectseg .*?)\n\n", text, flags=re.MULTILINE | re.DOTALL)
    return [*lines, *re.findall(r"^    ((?:time )?(?:python|defectseg) .*)", text, flags=re.MULTILINE), *examples]


def defectseg_calls(name: str) -> list[list[str]]:
    """The words after `defectseg` in each command that a document shows, without comments and further commands."""
    words = [shlex.split(line, comments=True) for line in shown_lines(name)]
    calls = [line[line.index("defectseg") + 1 :] for line in words if "defectseg" in line[:-1]]
    return [list(takewhile(lambda word: word not in ("&", "&&", "|"), call)) for call in calls]


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that `arguments` call, and its parameters as the real parser reads them; raises where it would."""
    command: Any = typer.main.get_command(app)
    names = []
    while hasattr(command, "commands") and not arguments[0].startswith("-"):
        names.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return " ".join(names), command.make_context(" ".join(names), list(arguments)).params


def all_options(command: Any) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(all_options, getattr(command, "commands", {}).values()))


CALLS = [pytest.param(call, id=" ".join(call)) for name in DOCUMENTS for call in defectseg_calls(name)]


@pytest.mark.parametrize("call", CALLS)
def test_each_command_shown_is_accepted_by_the_real_parser(call: list[str]) -> None:
    if {"--list", "--help"} & {*call}:  # these end the command
        with pytest.raises(typer.Exit):
            parse(call)
        return
    name, parameters = parse(call)
    if name == "train" and parameters["config"] is not None:
        load_recipe(parameters["config"], parameters["overrides"] or ())


def test_the_readme_shows_the_main_commands() -> None:
    shown = {parse(call)[0] for call in defectseg_calls("README.md") if "--list" not in call}
    assert shown >= {"train", "predict", "evaluate", "data check", "data split", "data import"}


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_flag_named_in_the_text_exists(document: str) -> None:
    inline = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", read(document), flags=re.M | re.S)))
    of_scripts = set().union(*(flags(path.read_text(encoding="utf-8")) for path in SCRIPTS))
    assert flags(inline) <= {"--help", *of_scripts, *all_options(typer.main.get_command(app))}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_script_shown_has_the_flags_that_it_is_given(document: str) -> None:
    for line in shown_lines(document):
        for script, arguments in re.findall(r"python (scripts/\S+\.py)(.*)", line):
            assert flags(arguments) <= flags(read(script)), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_link_and_each_path_of_the_project_leads_somewhere(document: str) -> None:
    text = read(document)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    paths = re.findall(r"(?<![\w./-])((?:\.ci|configs|defectseg|docs|scripts|tests)/[\w./-]*)", text)
    folder = (ROOT / document).parent
    assert [link for link in links if not (folder / link).exists()] == []
    assert [path for path in paths if not (ROOT / path.rstrip(".")).exists()] == []


def test_scripts_that_are_shown_can_be_run() -> None:
    shown = {
        line.split()[0] for name in DOCUMENTS for line in shown_lines(name) if line.startswith(("scripts/", ".ci/"))
    }
    assert {"scripts/demo", "scripts/test", "scripts/check", ".ci/run"} <= shown
    assert all((ROOT / path).stat().st_mode & 0o111 for path in shown)


def test_the_reference_of_commands_is_what_the_help_says() -> None:
    expected = runpy.run_path(str(ROOT / "scripts" / "commands.py"))["reference"]()
    assert read("docs/commands.md") == expected, "python scripts/commands.py >docs/commands.md"


def test_the_table_of_exit_codes_is_complete() -> None:
    rows = re.findall(r"^\| (\d+) \| ", read("README.md"), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [code.value for code in ExitCode]


def test_each_table_that_predict_writes_is_explained() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ", read("README.md"), flags=re.MULTILINE)
    assert {*TABLES, "overlays/*.jpg", "masks/*.png", "run.json"} <= set(rows)


def test_each_recipe_for_users_is_named() -> None:
    assert set(shipped_recipes()) - {"demo"} <= set(re.findall(r"`([a-z0-9-]+)`", read("README.md")))


def test_each_test_that_the_promises_name_is_there() -> None:
    file, missing, named = "", [], re.findall(r"`([^`]+)`", read("docs/reliability.md"))
    for name in (re.sub(r"\s+", " ", one) for one in named):
        file = name.partition(": ")[0] if ".py: " in name else file
        test = name.rpartition(" ")[2]
        if test.startswith("test_") and f"def {test}(" not in read(f"tests/{file}"):
            missing.append(name)
    assert file
    assert not missing
