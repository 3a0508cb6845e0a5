"""Recipes and command lines, read into a configuration.

One flat namespace: the field `batch_size` is `batch_size: 200` in a recipe and
`--batch-size 200` on the command line. A recipe is read by the same parser as the command line,
so both check names and types alike. Values out of range are refused where a section is built, on
the command line as in Python.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import io
import itertools
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from cfmrfn.config.options import Config, RunConfig
from cfmrfn.errors import ConfigError, brief, first_of

# Former name of a field -> its name now. Recipes, run folders and checkpoints written under the
# former name must stay readable.
RENAMED = {"kind": "layout"}

C = TypeVar("C")


def parse(
    tool: type[C], args: Sequence[str], default: C | None = None, prog: str | None = None
) -> C:
    """Parses `args` into the dataclass `tool`.

    Raises:
        ConfigError: an argument that is not legal; the message is one line.
    """
    _refuse_empty(args)
    # tyro prints errors as a box on stderr; its first paragraph says what is wrong
    box = io.StringIO()
    callers_error = sys.exc_info()[1]
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                tool,
                args=list(args),
                default=tyro.MISSING_NONPROP if default is None else default,
                prog=prog,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        # what a section raised when it was built is among the causes, before the caller's own
        cause: BaseException | None = stop
        while cause is not None and cause is not callers_error:
            if isinstance(cause, ConfigError):
                raise cause from None
            cause = cause.__context__
    lines = [line.strip("│ ") for line in box.getvalue().splitlines()[1:-1]]
    # where the terminal cannot show box characters, a rule follows the title
    body = itertools.dropwhile(_is_rule, lines)
    problem = " ".join(itertools.takewhile(lambda line: not _is_rule(line), body)).rstrip(".")
    if "Perhaps you meant:" in lines:
        problem += f"; perhaps {lines[lines.index('Perhaps you meant:') + 1]}"
    raise ConfigError(f"{problem} (--help lists all options)")


def _refuse_empty(args: Sequence[str]) -> None:
    """Checks that no argument is empty, which as a path would be the current folder.

    Raises:
        ConfigError: one is.
    """
    for before, arg in itertools.pairwise(["", *args]):
        option, equals, value = arg.partition("=")
        if arg and not (option.startswith("--") and equals and not value):
            continue
        what = option if arg else before if before.startswith("--") else "an argument"
        raise ConfigError(f"{what} is empty: leave it out, or see whether a variable has no value")


def _is_rule(line: str) -> bool:
    return line != "" and not line.strip("─-")


def parse_config(args: Sequence[str], prog: str | None = None) -> Config:
    """The configuration of a command line: recipe (or resumed run) first, then its flags.

    Raises:
        ConfigError: an unknown name, a value that is not legal, no run to resume, or options that a
            resumed run has for good.
    """
    _refuse_empty(args)
    resume = _peek(args, "--resume")
    if resume is None:
        return parse(Config, args, default=recipe_of(args), prog=prog)
    folder = run_folder_of(Path(resume))
    saved = from_yaml(folder / "config.yaml")
    config = parse(Config, args, default=saved, prog=prog)
    before, now = saved.absolute().run, config.absolute().run
    if fixed := [n for n in ("recipe", "output") if getattr(now, n) != getattr(before, n)]:
        raise ConfigError(
            f"--resume {resume} goes on in that run's folder and with its recipe: leave "
            f"{' and '.join(f'--{name}' for name in fixed)} out, or start a new run"
        )
    return dataclasses.replace(config, run=dataclasses.replace(config.run, resume=folder))


def run_folder_of(path: Path) -> Path:
    """The run folder that `path` is, or that the checkpoint `path` lies in.

    Raises:
        ConfigError: there is no run.
    """
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / "config.yaml").is_file():
        return folder
    if not path.exists():
        what = f"there is no {path}"
    else:
        what = f"{folder} is no run folder, it has no config.yaml"
    runs = sorted(path.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
    hint = f"; the latest in it is {runs[-1].parent}" if runs else ""
    raise ConfigError(
        f"cannot resume: {what}. --resume takes the folder that a run names in its first line, or "
        f"a checkpoint in it{hint}"
    )


def recipe_of(args: Sequence[str]) -> Config:
    """The recipe that a command line starts from."""
    return read_recipe(_peek(args, "--recipe") or RunConfig.recipe)


def continued(config: Config, folder: Path) -> Config:
    """The configuration, with what it leaves open of the network as in the run in `folder`.

    That includes the weights to start from, which a resumed run has in its own checkpoint.

    Raises:
        ConfigError: the run has another one in what decides the weights.
    """
    saved = from_yaml(folder / "config.yaml")
    left_open = {
        name: value
        for name, value in vars(saved.network).items()
        if getattr(config.network, name) is None
    }
    config = dataclasses.replace(config, network=dataclasses.replace(config.network, **left_open))
    if changed := config.differences(saved):
        raise ConfigError(
            f"{folder} was started with {'; '.join(changed)}. Leave these options out, or start a "
            "new run"
        )
    return config


def _peek(args: Sequence[str], flag: str) -> str | None:
    """The value of `flag`, before all of `args` can be parsed."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument(flag, dest="value", nargs="?")
    value: str | None = peek.parse_known_args(list(args))[0].value
    return value


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("cfmrfn") / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir())


def read_recipe(name: str) -> Config:
    """The configuration of a named recipe, or of a YAML file.

    Raises:
        ConfigError: there is no such recipe, or it is not legal.
    """
    if name in recipes():
        text = (resources.files("cfmrfn") / "recipes" / f"{name}.yaml").read_text("utf-8")
        config = from_mapping(yaml.safe_load(text), f"recipe {name}")
    elif name.endswith((".yaml", ".yml")):
        values = _values_in(Path(name))
        config = from_mapping(values, name, _base_of(values, name))
    else:
        raise ConfigError(
            f"recipe must be one of {', '.join(recipes())}, or a file.yaml; got {name!r}"
        )
    return dataclasses.replace(config, run=dataclasses.replace(config.run, recipe=name))


def _base_of(values: Any, source: str) -> Config | None:
    """The recipe that a user's one departs from; None: none is named, or nothing left out.

    Raises:
        ConfigError: a recipe that is not one of the package, or a run to resume.
    """
    if not isinstance(values, Mapping):
        return None
    if values.get("resume") is not None:
        raise ConfigError(f"{source}: resume is an option of the command line, not of a recipe")
    base = values.get("recipe")
    if base is None or not Config().flat().keys() - values.keys():  # of a run, which has all
        return None
    if base not in recipes():
        raise ConfigError(
            f"{source}: recipe must be one of {', '.join(recipes())}, for the fields that are left "
            f"out; got {brief(base)}"
        )
    return read_recipe(base)


def from_yaml(path: Path) -> Config:
    """Reads a YAML file of flat `field: value` lines.

    Raises:
        ConfigError: it cannot be read, or is not legal.
    """
    return from_mapping(_values_in(path), str(path))


def _values_in(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"cannot read configuration {path}: it is UTF-16; save it as UTF-8")
        return yaml.safe_load(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"cannot read configuration {path}: line {line} is not UTF-8; save it as UTF-8"
        ) from error
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from error


def from_mapping(values: Any, source: str, base: Config | None = None) -> Config:
    """The configuration of flat `field: value` pairs; `source` is named in errors.

    base: has the fields that are left out; None: the defaults.

    Raises:
        ConfigError: an unknown field, or a value that is not legal.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected lines of 'field: value', got {brief(values)}")
    for key, value in values.items():
        if not isinstance(key, str) or not all(map(_is_plain, _items(value))):
            raise ConfigError(
                f"{source}: values must be texts, numbers, or lists of these; got "
                f"{brief(key)}: {brief(value)}"
            )
    values = {RENAMED.get(key, key): value for key, value in values.items()}
    defaults = Config().flat()
    unknown = [key for key in values if key not in defaults]
    if unknown:
        raise ConfigError(
            f"{source}: unknown keys {', '.join(first_of([key[:80] for key in unknown]))}"
        )
    args = []
    for key, value in values.items():
        flag = str(key).replace("_", "-")
        if isinstance(value, bool) and defaults[key] is not None:
            args.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            args += [f"--{flag}", *map(str, _items(value))]
    try:
        return parse(Config, args, default=base)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_plain(value: Any) -> bool:
    """Of a length that a command line has: a checkpoint may come from anywhere."""
    if isinstance(value, str):
        return len(value) < 5000
    return value is None or isinstance(value, bool | int | float)
