"""Reproduce Tables 3 to 6 of the paper: `python -m cfmrfn.sweep TABLE...`, in one command.

Every row is trained with every seed, in a run folder of its own; rows of several tables that are
the same network share their runs. Runs that are done are not repeated, and one that was interrupted
goes on. `table.md` is written after every run, with what there is by then, beside the paper's
numbers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from cfmrfn import errors
from cfmrfn.checkpoint import build_network
from cfmrfn.complexity import Cost, measure
from cfmrfn.config import Config, OptimConfig, from_yaml, parse, read_recipe, recipe_of
from cfmrfn.errors import ConfigError
from cfmrfn.evaluation import HOW_CHOSEN, markdown, student
from cfmrfn.process import command
from cfmrfn.train import MEMORY_OPTIONS, Interrupted, Trainer
from cfmrfn.weights import initial_weights
from cfmrfn.whole_files import whole

Result = Mapping[str, Any]  # of a run, its report.json


class Row(NamedTuple):
    """A network of a table: its `label`, its options, and the paper's accuracies in percent."""

    label: str
    network: Mapping[str, Any]
    paper: Sequence[float]


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
        title: of the table.
        paper: names of the columns of the paper's accuracies.
        reference: label of the row that the others are compared with, the paper's network.
        rows: of the table.
    """

    title: str
    paper: Sequence[str]
    reference: str
    rows: Sequence[Row]

    @property
    def varied(self) -> set[str]:
        """Options of the network that the rows decide."""
        options = {option for row in self.rows for option in row.network}
        return options | WINDOWS if options & WINDOWS else options


WINDOWS = {"attention", "head_dilations"}  # either may contradict the other

RAFDB, AFFECTNET7, AFFECTNET8 = "RAF-DB", "AffectNet-7", "AffectNet-8"
ONE_LEVEL = {"head_dilations": (1,) * 8}

TABLES = {
    "table3": Table(
        "Table 3: depth of the encoder",
        (RAFDB,),
        "6",
        [
            Row(str(depth), {"depth": depth}, (accuracy,))
            for depth, accuracy in zip(
                range(2, 9), (91.69, 91.92, 91.56, 91.69, 92.14, 91.69, 91.75), strict=True
            )
        ],
    ),
    "table4": Table(
        "Table 4: heads at dilation 1, 2 and 3",
        (RAFDB,),
        "2, 3, 3",
        [
            Row("8, 0, 0", ONE_LEVEL, (91.43,)),
            Row("0, 4, 4", {"head_dilations": (2,) * 4 + (3,) * 4}, (91.79,)),
            Row("2, 3, 3", {"head_dilations": (1,) * 2 + (2,) * 3 + (3,) * 3}, (92.14,)),
            Row("4, 2, 2", {"head_dilations": (1,) * 4 + (2,) * 2 + (3,) * 2}, (91.98,)),
        ],
    ),
    "table5": Table(
        "Table 5: kind of attention",
        (RAFDB, AFFECTNET7),
        "sliding dilated window",
        [
            Row("global", {"attention": "global"}, (91.24, 66.80)),
            Row("sliding window", {"attention": "window"}, (91.43, 67.12)),
            Row("sliding dilated window", {"attention": "dilated"}, (92.14, 67.35)),
        ],
    ),
    "table6": Table(
        "Table 6: ablations",
        (RAFDB, AFFECTNET7, AFFECTNET8),
        "CFMRFN",
        [
            Row("CFMRFN", {}, (92.14, 67.35, 63.44)),
            Row("without multi-level dilation", ONE_LEVEL, (91.43, 67.12, 62.04)),
            Row("without windows", {"attention": "global"}, (91.24, 66.80, 61.51)),
            Row("without cross fusion", {"cross_fusion": False}, (90.26, 65.35, 61.12)),
            Row("expression only", {"streams": "expression"}, (88.14, 65.95, 54.70)),
            Row("landmarks only", {"streams": "landmark"}, (80.18, 48.78, 45.34)),
        ],
    ),
}


@dataclass(frozen=True)
class Sweep:
    """Train every row of tables of the paper with several seeds, and print the tables.

    All options of training apply; --output is the folder of the whole sweep.
    """

    tables: tyro.conf.Positional[tuple[Literal["table3", "table4", "table5", "table6"], ...]]
    """Tables of the paper."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds to train each row with."""
    config: Config = field(default_factory=Config)


class Job(NamedTuple):
    """A run to make: the `name` of its row, its seed and its configuration."""

    name: str
    seed: int
    config: Config


def sweep(names: Sequence[str], seeds: Sequence[int], config: Config) -> str:
    """Trains what is missing of the tables of these names; returns them as Markdown."""
    tables = [TABLES[name] for name in names]
    _check_seed(config)
    config = open_to_rows(names, config)
    folder = config.run.output or Path("runs") / "-".join([*names, Path(config.run.recipe).stem])
    first = first_of_equals(tables, config)
    jobs = []
    for seed in seeds:
        for label, own in first.items():
            if label == own:
                path = folder / re.sub(r"\W+", "-", label) / f"seed-{seed}"
                jobs.append(Job(label, seed, _configured(config, _row(tables, label), seed, path)))
    standing = [_standing(job.config) for job in jobs]  # an error now, if there is one
    results: dict[str, dict[int, Result]] = {}
    costs = {own: _cost(config, _row(tables, own)) for own in set(first.values())}

    def text() -> str:
        reports = {label: results.get(own, {}) for label, own in first.items()}
        cost = {label: costs[own] for label, own in first.items()}
        return "\n\n".join(format_table(table, reports, cost, seeds, config) for table in tables)

    missing = sum(not is_done for _, is_done in standing)
    print(f"{len(jobs)} runs in {errors.printable(str(folder))}, {missing} to do")
    seconds: list[float] = []
    for number, (job, (ready, is_done)) in enumerate(zip(jobs, standing, strict=True), start=1):
        if not is_done:
            left = ""
            if seconds:
                left = f"; about {_duration(sum(seconds) / len(seconds) * missing)} to go"
            print(f"\nrun {number} of {len(jobs)}: {job.name}, seed {job.seed}{left}", flush=True)
            started = time.monotonic()
            Trainer(ready).train()
            if ready.run.resume is None:  # the rest of a run would say too little
                seconds.append(time.monotonic() - started)
            missing -= 1
        assert job.config.run.output is not None
        report = json.loads((job.config.run.output / "report.json").read_text("utf-8"))
        results.setdefault(job.name, {})[job.seed] = report
        if not is_done or number == len(jobs):
            _write(folder / "table.md", text())
    return text()


def _check_seed(config: Config) -> None:
    if config.optim.seed != OptimConfig.seed:
        raise errors.ConfigError(
            f"seed must be left out, as each run of a sweep has one of --seeds; got "
            f"{config.optim.seed}. Say --seeds {config.optim.seed} instead"
        )


def open_to_rows(names: Sequence[str], config: Config) -> Config:
    """The configuration with the network of --init, which leaves to the rows what they decide.

    Raises:
        ConfigError: a row would not be what it is called, or an option would have no effect.
    """
    completed = initial_weights.with_network_of_init(config)
    for name in names:
        for option in sorted(TABLES[name].varied):
            given, value = (getattr(c.network, option) for c in (config, completed))
            flag = option.replace("_", "-")
            if given is not None:
                raise errors.ConfigError(
                    f"{flag} must be left out, as the rows of {name} decide it; got {_shown(given)}"
                )
            if value is not None and any(option not in r.network for r in TABLES[name].rows):
                raise errors.ConfigError(
                    f"init must be a network of the preset's {flag}, which rows of {name} stand "
                    f"for; {config.network.init} has {_shown(value)}"
                )
    return completed


def first_of_equals(tables: Sequence[Table], config: Config) -> dict[str, str]:
    """Label of each row -> that of the first row, of all tables, which is the same network.

    Raises:
        ConfigError: the network does not take a row's options.
    """
    labels: dict[str, str] = {}
    seen: dict[str, str] = {}
    for row in (row for table in tables for row in table.rows):
        configured = _configured(config, row)
        with torch.device("meta"):
            network = build_network(configured, 2)
        options = configured.network.options() | {
            "attention": None,  # windows without dilation are those with dilation 1
            "head_dilations": network.head_dilations,
            "depth": len(network.layers),
        }
        labels[row.label] = seen.setdefault(repr(options), row.label)
    return labels


def _row(tables: Sequence[Table], label: str) -> Row:
    return next(row for table in tables for row in table.rows if row.label == label)


def _configured(
    config: Config, row: Row, seed: int | None = None, output: Path | None = None
) -> Config:
    return dataclasses.replace(
        config,
        network=dataclasses.replace(config.network, **row.network),
        optim=config.optim if seed is None else dataclasses.replace(config.optim, seed=seed),
        run=dataclasses.replace(config.run, output=output),
    )


def _standing(config: Config) -> tuple[Config, bool]:
    """How a run starts or goes on, and whether it is done.

    Raises:
        ConfigError: the run there has another configuration.
    """
    path = config.run.output
    assert path is not None
    started = path / "config.yaml"
    if not started.exists():
        return config, False
    complete = initial_weights.with_chosen_landmarks(initial_weights.with_network_of_init(config))
    if changed := complete.differences(from_yaml(started)):
        raise ConfigError(
            f"{path} was started with {'; '.join(changed)}. Sweep with the same options, or into "
            "another --output"
        )
    # with more epochs a complete run goes on; with its images elsewhere it checks them
    saved, wanted = from_yaml(started).absolute(), config.absolute()
    same = (saved.images, saved.optim) == (wanted.images, wanted.optim)
    resumed = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=path))
    return resumed, (path / "report.json").exists() and same


def _cost(config: Config, row: Row) -> Cost:
    network = _configured(config, row).network
    size = config.images.image_size
    return measure(network.preset, image_size=size, img_size=size, **network.overrides()).total


def _write(path: Path, text: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:  # of the processes of torchrun
        with whole(path) as target:
            target.write_text(text + "\n", "utf-8")


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def format_table(
    table: Table,
    results: Mapping[str, Mapping[int, Result]],
    costs: Mapping[str, Cost],
    seeds: Sequence[int],
    config: Config,
) -> str:
    """Markdown: accuracies with their intervals over the seeds, and the paper's.

    Args:
        table: of the paper.
        results: label of the row -> seed -> report of the run; runs may be missing.
        costs: label of the row -> of its network.
        seeds: that each row is trained with.
        config: of all runs.
    """
    scores = {
        row.label: {seed: 100 * _held_out(r)["accuracy"] for seed, r in results[row.label].items()}
        for row in table.rows
    }
    differences = {
        label: _paired(own, scores[table.reference])
        for label, own in scores.items()
        if label != table.reference
    }
    some = next((r for own in results.values() for r in own.values()), None)
    if some is None:
        return f"**{table.title}**\n\nNo run is done."
    header = ["", f"{some['data']}, %", f"to {table.reference}, %", "parameters, M", "MACs, G"]
    header += [f"paper, {column}, %" for column in table.paper]
    rows = []
    for row in table.rows:
        own = list(scores[row.label].values())
        mean = _text(student.mean(own), within=(0, 100)) if own else "-"
        if own and len(own) < len(seeds):
            mean += f", {len(own)} of {len(seeds)} runs"
        difference = differences.get(row.label)
        cells = [row.label, mean, "-" if difference is None else _text(difference, "+")]
        cost = costs[row.label]
        cells += [f"{cost.executed / 1e6:.2f}", f"{cost.macs / 1e9:.3f}"]
        rows.append([*cells, *(f"{value:.2f}" for value in row.paper)])
    note = (
        f"{_network(table, config)} on {some['data']}, "
        f"{errors.counted(config.optim.epochs, 'epoch')}; epoch chosen: "
        f"{HOW_CHOSEN[some['chosen_on']]}; means over seeds {', '.join(map(str, seeds))}, in "
        "brackets their 95 % intervals by Student's t, cut at 0 and 100 %; differences and their "
        f"intervals are of runs with the same seed (paired).{_about_duplicates(some)} "
        f"{_recipe(config)} Parameters are those executed. The paper's columns are cfmrfn_base on "
        "the data named, one run each."
    )
    return "\n\n".join(
        [
            f"**{table.title}**",
            markdown.table(header, rows),
            _verdict(table.reference, differences),
            *_about_other_images({row.label: results[row.label] for row in table.rows}),
            note,
        ]
    )


def _held_out(result: Result) -> Mapping[str, Any]:
    chosen: Mapping[str, Any] = result["held_out"][result["chosen_on"]]
    return chosen


def _paired(own: Mapping[int, float], others: Mapping[int, float]) -> student.Mean | None:
    """Of the differences at the seeds that both have; None: there are none."""
    gains = [own[seed] - others[seed] for seed in own if seed in others]
    return student.mean(gains) if gains else None


def _network(table: Table, config: Config) -> str:
    """The network that all rows have in common, in words: the preset, and what departs from it."""
    return config.network.preset + _with(
        {
            option: value
            for option, value in vars(config.network).items()
            if value is not None and option != "model" and option not in table.varied
        }
    )


def _recipe(config: Config) -> str:
    """A sentence: the recipe, and what departs from it in images and optimisation.

    Data, epochs and seeds are said elsewhere.
    """
    recipe = read_recipe(config.run.recipe)
    departures = {
        option: value
        for own, its in ((config.images, recipe.images), (config.optim, recipe.optim))
        for option, value in vars(own).items()
        if value != getattr(its, option) and option not in ("data", "epochs", "seed")
    }
    return f"Recipe {errors.printable(config.run.recipe)}{_with(departures)}."


def _with(options: Mapping[str, object]) -> str:
    named = [f"{o.replace('_', '-')} {errors.printable(_shown(v))}" for o, v in options.items()]
    return f" with {', '.join(named)}" if named else ""


def _shown(value: object) -> str:
    """As on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _text(
    mean: student.Mean, sign: str = "", within: tuple[float, float] = (-math.inf, math.inf)
) -> str:
    if mean.interval is None:
        return f"{mean.value:{sign}.2f}"
    low, high = (min(max(end, within[0]), within[1]) for end in mean.interval)
    return f"{mean.value:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _verdict(reference: str, differences: Mapping[str, student.Mean | None]) -> str:
    """Which rows differ from the reference by more than noise, in sentences."""
    known = {label: found for label, found in differences.items() if found is not None}
    if all(found.interval is None for found in known.values()):
        return "Noise is not known: an interval takes two seeds or more."
    by_verdict: dict[bool, list[str]] = {True: [], False: []}
    for label, found in known.items():
        if found.interval is not None:
            by_verdict[found.differs_from_0].append(f"{label} ({found.value:+.2f})")
    parts = []
    if apart := by_verdict[True]:
        parts.append(f"Beyond noise, 0 being outside of the interval, from {reference}: ")
        parts[-1] += f"{'; '.join(apart)}."
    if within := by_verdict[False]:
        parts.append(f"Within noise, not told apart from {reference}: {'; '.join(within)}.")
    parts.append(
        "Each interval is for its row alone: of 20 rows that do not differ one is expected outside."
    )
    return " ".join(parts)


def _about_other_images(results: Mapping[str, Mapping[int, Result]]) -> list[str]:
    """A sentence where runs of the same seed were trained on different images."""
    first: dict[int, tuple[object, object]] = {}
    others = []
    for label, own in results.items():
        for seed, result in own.items():
            images = result.get("fingerprint"), result.get("image_bytes")
            # former reports tell nothing of their images
            if None not in images and first.setdefault(seed, images) != images:
                others.append(f"{label} (seed {seed})")
    if not others:
        return []
    return [
        f"**Images differ**: {'; '.join(others)}. Their files have other names, labels or sizes "
        "than those of runs above with the same seed: the data changed between the runs. Delete "
        "the folders of runs on former images, and sweep again."
    ]


def _about_duplicates(result: Result) -> str:
    held_out = _held_out(result)
    if "without_duplicates" not in held_out:
        return ""
    images = held_out["images"]
    count = images - held_out["without_duplicates"]["images"]
    return (
        f" {count} of the {images} held-out images are training images too; --drop-duplicates "
        "leaves them out."
    )


@command.memory_options(MEMORY_OPTIONS)
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.sweep") -> None:
    """The command line."""
    args = sys.argv[1:] if args is None else args
    default = Sweep(tables=tyro.MISSING, config=recipe_of(args))
    tool = parse(Sweep, args, default=default, prog=prog)
    if tool.config.run.resume is not None:
        raise errors.ConfigError("a sweep resumes by itself: leave --resume out")
    if not tool.seeds or len(set(tool.seeds)) < len(tool.seeds) or min(tool.seeds) < 0:
        raise errors.ConfigError(
            f"seeds must be distinct, 0 or more, at least one; got {tool.seeds}"
        )
    if not tool.tables or len(set(tool.tables)) < len(tool.tables):
        given = " ".join(tool.tables) or "none"
        raise errors.ConfigError(f"tables must be distinct, at least one; got {given}")
    try:
        print("\n" + sweep(tool.tables, tool.seeds, tool.config))
    except Interrupted:
        print("repeat this command to go on with the sweep")
        sys.exit(130)


if __name__ == "__main__":
    command.run(main)
