"""Version, changelog, extras and what goes into a wheel."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

import defectseg

ROOT = Path(__file__).parent.parent
VERSION = re.compile(r"\d+\.\d+\.\d+")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_newest_release_in_the_changelog_is_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    releases = headings[1:]
    assert all(VERSION.fullmatch(release) for release in releases)
    assert releases[:1] in ([], [defectseg.__version__])


def test_the_wheel_holds_the_recipes_where_the_package_looks_for_them() -> None:
    wheel = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["defectseg"]
    assert wheel["force-include"] == {"configs": "defectseg/configs"}


def test_files_named_in_pyproject_exist() -> None:
    project = pyproject()
    names = [project["project"]["readme"], *project["project"]["license-files"]]
    names += project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_base_installation_is_free_of_torch() -> None:
    names = {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0] for line in pyproject()["project"]["dependencies"]}
    assert names.isdisjoint({"torch", "torchvision", "timm", "segmentation-models-pytorch", "accelerate"})


def test_errors_name_extras_that_exist() -> None:
    extras = set(pyproject()["project"]["optional-dependencies"])
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "defectseg").rglob("*.py")]
    named = {name for source in sources for name in re.findall(r"defectseg\[(\w+)\]", source)}
    assert named <= extras


def test_the_readme_tells_of_every_extra() -> None:
    told = set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert set(pyproject()["project"]["optional-dependencies"]) <= told


def test_each_dependency_is_justified() -> None:
    project = pyproject()["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    names = {re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0].lower() for line in wanted} - {"defectseg"}
    told = set(re.findall(r"[a-z0-9-]+", (ROOT / "docs" / "design.md").read_text(encoding="utf-8").lower()))
    assert names <= told


def test_pre_commit_downloads_nothing_and_runs_what_the_check_runs() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert all(hook["language"] == "system" for hook in hooks)
    check = (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    entries = [hook["entry"].split()[0] for hook in hooks]
    assert [entry for entry in entries if entry not in check] == []
