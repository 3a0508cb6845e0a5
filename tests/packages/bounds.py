"""Are the lower bounds of pyproject.toml what is installed: `python -m tests.packages.bounds`.

It is for an environment made with `uv pip install --resolution lowest-direct`, where the tests are
run, so that no bound is lower than what they ran with: docs/install.md has the commands. Linters
are left out. The table is Markdown; the exit status is 1 if a bound is missing or is not what is
installed.
"""

import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks.markdown import table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
HEADER = ["needed by", "dependency", "lower bound", "installed", ""]


def requirements() -> dict[tuple[str, str], Requirement]:
    """By what needs them and name: those of the build, the packages and the extras but `dev`."""
    read = tomllib.loads(PYPROJECT.read_text("utf-8"))
    groups = {"build": read["build-system"]["requires"], "sdwa": read["project"]["dependencies"]}
    groups |= read["project"]["optional-dependencies"]
    del groups["dev"]
    parsed = [(group, Requirement(text)) for group, texts in groups.items() for text in texts]
    return {(group, each.name): each for group, each in parsed if each.name != "sdwa"}


def compare(requirement: Requirement) -> list[str]:
    """Bound, installed version, and what is wrong, of two numbers or as many as the bound has."""
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return [*(bounds or ["none"]), "none", "**not installed**"]
    if not bounds:
        return ["none", installed, "**no bound**"]
    bound, found = Version(bounds[0]).release, Version(installed).release
    numbers = max(2, len(bound))
    same = (*bound, 0, 0)[:numbers] == (*found, 0, 0)[:numbers]
    return [bounds[0], installed, "" if same else "**differs**"]


def main() -> int:
    """Prints the table; returns the exit status."""
    rows = [
        [*key, *compare(requirement)]
        for key, requirement in requirements().items()
        if requirement.marker is None or requirement.marker.evaluate()
    ]
    print(table(HEADER, rows))
    return int(any(row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
