"""The folder of a run: all that is left of it on disk.

::

    config.yaml     the resolved configuration
    log.txt         what was printed
    batch.png       images of the first batch, as the network saw them, with their labels
    metrics.csv     one line per epoch
    curves.png      the same, drawn
    last.pt         the latest checkpoint, from which --resume continues
    best.pt         the weights of the best epoch
    report.json     final results; `duplicates` are evaluation images that are training images too
    confusion.png   confusion matrix of the best epoch on the held-out images
    tensorboard/    events
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cfmrfn.config import Config, from_yaml
from cfmrfn.errors import CheckpointError, printable
from cfmrfn.whole_files import whole

Row = dict[str, Any]


class RunFolder:
    """A run folder that exists; `create` makes one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.report = path / "report.json"

    def log(self, text: str) -> None:
        """Prints `text` above the progress bar, and keeps it in `log.txt`."""
        tqdm.write(printable(text))
        # file names in it may be bytes that are no UTF-8
        with open(self.path / "log.txt", "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def reopen(self, config: Config, *, is_complete: bool) -> None:
        """Records what a resumed run may have changed for good: its epochs and where its data are.

        A run that `is_complete` keeps its report.
        """
        if not is_complete:
            self.report.unlink(missing_ok=True)
        saved = from_yaml(self.path / "config.yaml")
        images = dataclasses.replace(saved.images, data=config.absolute().images.data)
        optim = dataclasses.replace(saved.optim, epochs=config.optim.epochs)
        changed = dataclasses.replace(saved, images=images, optim=optim)
        if changed != saved:
            self.write("config.yaml", changed.to_yaml())

    def write_metrics(self, rows: list[Row]) -> None:
        """Writes `metrics.csv` anew; confusion matrices stay out of it."""
        text = io.StringIO()
        columns = [name for name in rows[0] if not name.endswith("_matrix")]
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue())

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes `report.json`, whose presence says that the run is complete."""
        self.write(self.report.name, json.dumps(report, indent=1) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes a text file, whole or not at all."""
        with whole(self.path / name) as target:
            target.write_text(text, "utf-8")


def create(config: Config) -> RunFolder:
    """Makes the folder and writes the configuration.

    Without `output` it is `runs/DATA-DATE-TIME`: DATA is the name of the data set's own folder, or
    `drawn` where faces are drawn.

    Raises:
        CheckpointError: the folder exists, or cannot be made.
    """
    data = config.images.data
    # absolute, so that `--data .` has a name too; stray bytes in it are not TensorBoard's to write
    name = "drawn" if data is None else Path(os.path.abspath(data)).name
    name = re.sub(r"[\ud800-\udfff]", "_", name)
    path = config.run.output or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if path.exists():
        raise CheckpointError(
            f"run folder {path} exists; continue it with --resume {path}, "
            "or choose another --output"
        )
    # The folder appears with its configuration in it: a run killed at this moment can be repeated.
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        RunFolder(partial).write("config.yaml", config.absolute().to_yaml())
        partial.rename(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot make run folder {path}: {error}; choose another --output"
        ) from error
    return RunFolder(path)
