"""Data sets on the command line: `python -m cfmrfn.data verify|draw|prepare`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image

from cfmrfn import errors
from cfmrfn.config import LayoutName, parse
from cfmrfn.data import ferplus, open_set
from cfmrfn.data.synthetic import contact_sheet, write_faces
from cfmrfn.data.verify import verify


@dataclass(frozen=True)
class Verify:
    """Recognise a data set, count its classes, open every image, list what is missing or broken."""

    root: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROOT")]
    """Root folder of the data set."""
    layout: LayoutName = "auto"
    """Layout of the data set: rafdb, affectnet, ferplus, ferplus-argmax10, ferplus-argmax8, folder,
    drawn; auto recognises it."""
    classes: int | None = None
    """Number of expressions, 7 or 8, where a set has both settings. None: as found."""
    workers: int = os.cpu_count() or 1
    """Processes that open images."""

    def run(self) -> int:
        found = verify(open_set(self.root, self.layout, self.classes), workers=self.workers)
        print(found)
        return 1 if found.problems else 0


@dataclass(frozen=True)
class Draw:
    """Draw a set of faces in RAF-DB's layout, or a contact sheet of them."""

    root: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="ROOT")] = None
    """Folder to make; may be left out with --sheet."""
    classes: int = 7
    """7 expressions, or 8 with contempt."""
    train: int = 2000
    """Faces for training."""
    test: int = 500
    """Faces held out."""
    size: int = 128
    """Side of the images, in pixels."""
    seed: int = 0
    """Seed of everything random."""
    workers: int = os.cpu_count() or 1
    """Processes that draw."""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture file to write a contact sheet to: one row of faces per expression."""

    def run(self) -> int:
        if self.root is None and self.sheet is None:
            raise errors.ConfigError("name a folder to draw into, or a picture with --sheet")
        if self.sheet is not None:
            if self.sheet.suffix.lower() not in Image.registered_extensions():
                raise errors.ConfigError(f"sheet must end as pictures do, .png; got {self.sheet}")
            contact_sheet(self.classes, size=self.size, seed=self.seed).save(self.sheet)
            print(f"contact sheet: {self.sheet}")
        if self.root is not None:
            root = write_faces(
                self.root,
                classes=self.classes,
                train=self.train,
                test=self.test,
                size=self.size,
                seed=self.seed,
                workers=self.workers,
            )
            print(f"drawn faces: {root}")
        return 0


@dataclass(frozen=True)
class Prepare:
    """Write FERPlus images from fer2013.csv and fer2013new.csv."""

    root: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROOT")]
    """Folder that holds both files; the images go there."""

    def run(self) -> int:
        if not self.root.is_dir():
            raise errors.DataError(f"data folder {self.root} does not exist")
        for folder, count in ferplus.prepare(os.fspath(self.root)).items():
            print(f"{self.root / folder}: {count} images")
        return 0


COMMAND: Any = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Draw, tyro.conf.subcommand("draw")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
)


def main(args: list[str] | None = None) -> None:
    """The command line."""
    command = parse(
        COMMAND,
        sys.argv[1:] if args is None else args,
        default=tyro.MISSING_NONPROP,
        prog="python -m cfmrfn.data",
    )
    sys.exit(command.run())


if __name__ == "__main__":
    errors.run(main)
