"""Data sets on the command line: `python -m cfmrfn.data verify|draw|prepare|split`."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cfmrfn import errors
from cfmrfn.checks import check_at_least, check_fractions_below_1, require
from cfmrfn.config import LayoutName, parse
from cfmrfn.data import ferplus, open_set, split
from cfmrfn.data.duplicates import write_groups
from cfmrfn.data.files import check_folder
from cfmrfn.data.synthetic import contact_sheet, write_faces
from cfmrfn.data.verify import verify
from cfmrfn.errors import printable
from cfmrfn.process import command
from cfmrfn.process.cores import available_cores
from cfmrfn.whole_files import is_picture_name, save_image, whole


@dataclass(frozen=True)
class Verify:
    """Recognise a data set, count its classes, open every image, list what is missing, broken, or
    there more than once."""

    root: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROOT")]
    """Root folder of the data set."""
    layout: LayoutName = "auto"
    """Layout of the data set: rafdb, affectnet, ferplus, ferplus-argmax10, ferplus-argmax8,
    ferplus-votes, folder, drawn; auto recognises it."""
    classes: int | None = None
    """Number of expressions, 7 or 8, where a set has both settings. None: as found."""
    only: tuple[str, ...] | None = None
    """Classes to use, by name, of those in the data. None: all."""
    boxes: bool = True
    """Crop to the face boxes of AffectNet's lists; --no-boxes for images that are cropped."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean: affectnet, rafdb, ferplus or fer2013 labels, or
    class names in order. None: affectnet's from 0, rafdb's from 1."""
    workers: int = available_cores()
    """Processes that open images."""
    shown: int = 20
    """Groups of duplicates to print."""
    duplicates: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """CSV file to write all groups of duplicates to, one line per image."""

    def __post_init__(self) -> None:
        check_at_least(self, shown=0)

    def run(self) -> int:
        opened = open_set(
            self.root,
            self.layout,
            self.classes,
            only=self.only,
            training=False,
            boxes=self.boxes,
            digits=self.digits,
        )
        found = verify(opened, workers=self.workers, shown=self.shown)
        if self.duplicates is not None:
            write_groups(self.duplicates, found.duplicates)
        print("\n".join([str(found), *opened.without_effect(boxes=self.boxes, digits=self.digits)]))
        return 1 if found.problems else 0


@dataclass(frozen=True)
class Draw:
    """Draw a set of faces in RAF-DB's layout, or a contact sheet of them."""

    root: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[ROOT]")] = None
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
    workers: int = available_cores()
    """Processes that draw."""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture file to write a contact sheet to: one row of faces per expression."""

    def run(self) -> int:
        if self.root is None and self.sheet is None:
            raise errors.ConfigError("name a folder to draw into, or a picture with --sheet")
        if self.sheet is not None:
            if not is_picture_name(self.sheet):
                raise errors.ConfigError(f"sheet must end as pictures do, .png; got {self.sheet}")
            sheet = contact_sheet(self.classes, size=self.size, seed=self.seed)
            with whole(self.sheet) as path:
                save_image(sheet, path)
            print(f"contact sheet: {printable(str(self.sheet))}")
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
            print(f"drawn faces: {printable(str(root))}")
        return 0


@dataclass(frozen=True)
class Prepare:
    """Write FERPlus images from fer2013.csv and fer2013new.csv."""

    root: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ROOT")]
    """Folder that holds both files; the images go there."""

    def run(self) -> int:
        check_folder(self.root)
        for folder, count in ferplus.prepare(os.fspath(self.root)).items():
            print(f"{printable(str(self.root / folder))}: {count} images")
        return 0


@dataclass(frozen=True)
class Split:
    """Divide class folders at random into train, test and val, for training.

    Each part has its share of every class. Images that are the same pixel for pixel stay in one
    part. FOLDER is left as it is; the files of TARGET are hard links to those of FOLDER, or copies
    where the file system has none.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of class folders, such as FOLDER/happy/1.jpg."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """Folder to make."""
    test: float = 0.2
    """Share of the images to test on, at least one of each class that has two."""
    validation: float = 0.0
    """Share of the images to choose the best epoch on, at least one of each class that has three.
    0: none."""
    seed: int = 0
    """Seed that decides which."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean, as verify takes it."""
    workers: int = available_cores()
    """Processes that open images."""

    def __post_init__(self) -> None:
        check_at_least(self, seed=0)
        require(0 < self.test < 1, "test", self.test, "above 0 and below 1")
        check_fractions_below_1(self, "validation")
        together = self.test + self.validation
        require(together < 1, "test and validation together", together, "below 1")

    def run(self) -> int:
        split.check_target(self.folder, self.target)
        division = split.divide(
            self.folder,
            test=self.test,
            validation=self.validation,
            seed=self.seed,
            digits=self.digits,
            workers=self.workers,
        )
        split.write(division, self.folder, self.target)
        print(division)
        print(f"divided: {printable(str(self.target))}")
        return 0


COMMAND: Any = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Draw, tyro.conf.subcommand("draw")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Split, tyro.conf.subcommand("split")]
)


def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.data") -> None:
    """The command line."""
    tool = parse(
        COMMAND,
        sys.argv[1:] if args is None else args,
        default=tyro.MISSING_NONPROP,
        prog=prog,
    )
    # names of files may hold what the terminal's encoding does not
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(tool.run())


if __name__ == "__main__":
    command.run(main)
