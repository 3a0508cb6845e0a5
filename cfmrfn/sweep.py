"""Reproduce Tables 3 to 6 of the paper: `python -m cfmrfn.sweep TABLE`, one command each.

Every row of a table is trained with every seed, in a run folder of its own; runs that are done are
not repeated, and one that was interrupted goes on. At the end, or while runs are missing, the table
is printed beside the paper's and written to `table.md`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from cfmrfn import errors, weights
from cfmrfn.complexity import measure
from cfmrfn.config import Config, continued, from_yaml, parse, recipe_of
from cfmrfn.evaluation import HOW_CHOSEN
from cfmrfn.train import MEMORY_OPTIONS, Interrupted, Trainer


class Row(NamedTuple):
    """A network of a table: its `label`, its options, and the paper's accuracies in percent."""

    label: str
    network: Mapping[str, Any]
    paper: Sequence[float]


class Table(NamedTuple):
    """A table of the paper; `paper` names the columns of its accuracies."""

    title: str
    paper: Sequence[str]
    rows: Sequence[Row]


RAFDB, AFFECTNET7, AFFECTNET8 = "RAF-DB", "AffectNet-7", "AffectNet-8"
ONE_LEVEL = {"head_dilations": (1,) * 8}

TABLES = {
    "table3": Table(
        "Table 3: depth of the encoder",
        (RAFDB,),
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
        [
            Row("global", {"attention": "global"}, (91.24, 66.80)),
            Row("sliding window", {"attention": "window"}, (91.43, 67.12)),
            Row("sliding dilated window", {"attention": "dilated"}, (92.14, 67.35)),
        ],
    ),
    "table6": Table(
        "Table 6: ablations",
        (RAFDB, AFFECTNET7, AFFECTNET8),
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
    """Train every row of a table of the paper with several seeds, and print the table.

    All options of training apply; --output is the folder of the whole sweep.
    """

    table: tyro.conf.Positional[Literal["table3", "table4", "table5", "table6"]]
    """Table of the paper."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train each row with."""
    config: Config = field(default_factory=Config)


def sweep(name: str, seeds: Sequence[int], config: Config) -> str:
    """Trains what is missing of the table `name`; returns the table as Markdown."""
    table = TABLES[name]
    config = weights.with_network_of_init(config)
    folder = config.run.output or Path("runs") / f"{name}-{Path(config.run.recipe).stem}"
    results: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        network = dataclasses.replace(config.network, **row.network)
        for seed in seeds:
            path = folder / re.sub(r"\W+", "-", row.label) / f"seed-{seed}"
            result = run_once(
                dataclasses.replace(
                    config,
                    network=network,
                    optim=dataclasses.replace(config.optim, seed=seed),
                    run=dataclasses.replace(config.run, output=path),
                )
            )
            results.setdefault(row.label, []).append(result)
    text = format_table(table, results, seeds, config)
    (folder / "table.md").write_text(text + "\n", "utf-8")
    return text


def run_once(config: Config) -> dict[str, Any]:
    """The final results of one run, which is started, continued, or already done."""
    path = config.run.output
    assert path is not None
    report, started = path / "report.json", path / "config.yaml"
    is_done = False
    if started.exists():
        continued(config, path)
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=path))
        # with more epochs a complete run goes on; with its images elsewhere it checks them
        saved, wanted = from_yaml(started).absolute(), config.absolute()
        same = (saved.images, saved.optim) == (wanted.images, wanted.optim)
        is_done = report.exists() and same
    if not is_done:
        Trainer(config).train()
    result: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return result


def format_table(
    table: Table,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    config: Config,
) -> str:
    """Markdown: accuracy as mean and standard deviation over the seeds, beside the paper's."""
    some = results[table.rows[0].label][0]
    header = ["", f"{some['data']}, %", "parameters, M", "MACs, G"]
    header += [f"paper, {column}, %" for column in table.paper]
    lines = [header, [":--", *["--:"] * (len(header) - 1)]]
    for row in table.rows:
        scores = [100 * r["held_out"][r["chosen_on"]]["accuracy"] for r in results[row.label]]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        network = dataclasses.replace(config.network, **row.network)
        size = config.images.image_size
        cost = measure(network.preset, image_size=size, img_size=size, **network.overrides()).total
        ours = [
            f"{statistics.mean(scores):.2f}{spread}",
            f"{cost.executed / 1e6:.2f}",
            f"{cost.macs / 1e9:.3f}",
        ]
        lines.append([row.label, *ours, *(f"{value:.2f}" for value in row.paper)])
    note = (
        f"{config.network.preset} on {some['data']}, {config.optim.epochs} epochs; epoch chosen: "
        f"{HOW_CHOSEN[some['chosen_on']]}; mean and standard deviation over seeds "
        f"{', '.join(map(str, seeds))}. Parameters are those executed. The paper's columns are "
        f"cfmrfn_base on the data named, one run each."
    )
    return "\n".join(
        [f"**{table.title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines), "", note]
    )


@errors.memory_options(MEMORY_OPTIONS)
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.sweep") -> None:
    """The command line."""
    args = sys.argv[1:] if args is None else args
    default = Sweep(table=tyro.MISSING, config=recipe_of(args))
    tool = parse(Sweep, args, default=default, prog=prog)
    if tool.config.run.resume is not None:
        raise errors.ConfigError("a sweep resumes by itself: leave --resume out")
    if not tool.seeds or len(set(tool.seeds)) < len(tool.seeds) or min(tool.seeds) < 0:
        raise errors.ConfigError(
            f"seeds must be distinct, 0 or more, at least one; got {tool.seeds}"
        )
    try:
        print("\n" + sweep(tool.table, tool.seeds, tool.config))
    except Interrupted:
        print("repeat this command to go on with the sweep")
        sys.exit(130)


if __name__ == "__main__":
    errors.run(main)
