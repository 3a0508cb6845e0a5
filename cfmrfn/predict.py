"""Expressions of faces in pictures and videos: `python -m cfmrfn.predict [CHECKPOINT] FILES...`."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Annotated

import tyro
from PIL import Image
from tqdm import tqdm

from cfmrfn import pretrained, trained, video
from cfmrfn.checks import check_at_least, check_positive
from cfmrfn.config import parse
from cfmrfn.data import Sample, find_images, read_image
from cfmrfn.data.files import IMAGE_SUFFIXES
from cfmrfn.data.reading import HEIC_SUFFIXES, UNREADABLE, image_size
from cfmrfn.errors import ConfigError, DataError, on_one_line, printable
from cfmrfn.faces import Framing, why_no_detector
from cfmrfn.inference import FaceTable, open_face_list, open_table, progress_bar
from cfmrfn.overlay import draw
from cfmrfn.predictor import Face, Faces, Predictor
from cfmrfn.process import command
from cfmrfn.training.images import framing_of
from cfmrfn.whole_files import is_stream, save_image, whole

MOST_OF_JPEG = 65500  # pixels on a side
_PICTURES_AND_VIDEOS = (*IMAGE_SUFFIXES, *HEIC_SUFFIXES, *video.VIDEO_SUFFIXES)

File = str | os.PathLike[str]


def predict(
    path: str | Path | None,
    images: File | Sequence[File],
    batch_size: int = 32,
    device: str = "auto",
    *,
    workers: int | None = 0,
    on_broken: str = "error",
) -> Iterator[dict[str, float] | None]:
    """Probabilities by class name for each image file, in order.

    The whole image is taken as the face, as in the training data; `cfmrfn.Predictor` finds faces.

    Args:
        path: of a network, see `cfmrfn.Predictor`. None: the one that comes with the package.
        images: one file or several.
        batch_size: images at a time.
        device: "auto", or what `torch.device` takes.
        workers: threads that read images while the network runs. None: one for each core, at most
            8. 0: none, and nothing is read ahead.
        on_broken: what an image does that cannot be read: "error", or "skip", which gives None in
            its place.

    Raises:
        CheckpointError, ConfigError: the checkpoint or an argument cannot be used.
        DataError: an image cannot be read.
    """
    if on_broken not in ("error", "skip"):
        raise ConfigError(f"on_broken must be error or skip; got {on_broken!r}")
    if isinstance(images, (str, os.PathLike)):
        images = [images]
    predictor = Predictor(path, device, "whole")
    with closing(predictor.stream(images, batch_size, workers)) as answers:
        for answer in answers:
            if not isinstance(answer, DataError):
                (face,) = answer
                yield face.probabilities
            elif on_broken == "skip":
                yield None
            else:
                raise answer


@dataclass(frozen=True)
class Found:
    """Files of images and videos, and remarks on what was given beside them: `empty` names folders
    without any."""

    files: list[str]
    left_out: list[str]
    empty: list[str]


def image_files(paths: Sequence[Path]) -> Found:
    """The files among `paths`, and in place of a folder the images and videos in it, by name.

    Raises:
        ConfigError: there are none.
    """
    files, left_out, empty = [], [], []
    for path in paths:
        if not path.is_dir():
            files.append(str(path))
            continue
        found = find_images(path, also=video.VIDEO_SUFFIXES)
        files += found.paths
        left_out += [
            f"left out of {path}: {count}, {reason}" for reason, count in found.left_out.items()
        ]
        if not found.paths:
            empty.append(f"there are no images or videos in folder {path}")
    if not files:
        raise ConfigError("; ".join([*(empty or ["no images were given"]), *left_out]))
    return Found(files, left_out, empty)


@dataclass(frozen=True)
class Predict:
    """Find the faces in pictures and videos, and print the most likely expressions of each.

    What cannot be read is named on stderr, and the rest goes on. The exit status is 0 where every
    file has an answer; 1 where one could not be read, no face was found in one, or one of several
    folders has none; and 2 where there are no files at all. cfmrfn.inference documents the columns
    of --csv and the parts of --json.

    A camera is watched until Ctrl-C, which is no error there, or for --seconds. An animated picture
    is a picture; the first frame of it is taken.
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[CHECKPOINT] PICTURE [PICTURE ...]"),
    ]
    """CHECKPOINT: best.pt or last.pt of a run, or the run folder, whose best.pt is taken; or a
    folder or ONNX file that was exported. Left out, or pretrained: the network that comes with the
    package. PICTURE: a file of a picture or video, a folder of them, or the number of a camera,
    such as 0, where no file has that name."""
    faces: Faces = "auto"
    """whole: each picture is one cropped face. detect: find the faces. auto: whole where a picture
    has at most 256 x 256 pixels and nearly equal sides, as crops have; else detect."""
    min_size: int | None = None
    """Height of the smallest face to find, in pixels. None: 40, or a hundredth of the longer side
    of the picture if that is more."""
    min_score: float = 0.9
    """Score of the detector that a face needs, 0 to 1."""
    framing: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Images that show faces as the network's training images do: found faces are cropped so.
    None: as the checkpoint says, which cfmrfn.train measured."""
    top: int = 3
    """Expressions to print for each face."""
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write each face's place, prediction and probabilities to this CSV file."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The same as JSON, with landmarks where the network has them."""
    overlay: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Also draw each picture's faces and expressions into this folder, which must be new or
    empty; NAME-faces.mp4 for a video, without its sound. Of one NAME in several folders the others
    are NAME-2, NAME-3, ...; --json says which picture is which."""
    bars: bool = False
    """Draw bars of all classes there, where there is room beside the faces."""
    smooth: float = 0.0
    """Time constant in seconds of an exponential moving average of each face's probabilities in a
    video. 0: none."""
    seconds: float | None = None
    """Of each video or camera that are read. None: all."""
    batch_size: int = 32
    """Faces at a time."""
    workers: int | None = None
    """Threads that read pictures and find faces. None: one for each core, at most 8; 0: none beside
    the network."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., mps; auto takes the NVIDIA or AMD GPU where there is one, else the
    CPU."""

    def __post_init__(self) -> None:
        check_at_least(self, top=1, batch_size=1, workers=0, smooth=0)
        check_positive(self, "seconds")
        for option, table in (("--csv", self.csv), ("--json", self.json)):
            if table == Path("-"):
                raise ConfigError(f"{option} -: standard output is {option} /dev/stdout")
            # where its own name was forgotten, this is the first of the pictures
            if table is not None and table.suffix.lower() in _PICTURES_AND_VIDEOS:
                raise ConfigError(f"{option} must not be named as a picture or video; got {table}")
            if table is not None and table.is_dir():
                raise ConfigError(f"{option} must be a file to write; {table} is a folder")
            if table is not None and not table.parent.exists():
                raise ConfigError(f"{option}: there is no folder {table.parent}; make it first")
        if self.csv is not None and self.json is not None and _is_same_file(self.csv, self.json):
            raise ConfigError(f"--csv and --json must be different files; both are {self.csv}")

    def without_effect(self, files: Sequence[str]) -> list[str]:
        """Options that were set and change nothing for `files`, each in a line that says why."""
        pictures_only = not any(map(_is_video, files))
        whole_only = self.faces == "whole"
        idle = [
            ("bars", self.overlay is None, "--overlay is not given"),
            ("smooth", pictures_only, "there is no video"),
            ("seconds", pictures_only, "there is no video"),
            ("min_size", whole_only, "--faces is whole"),
            ("min_score", whole_only, "--faces is whole"),
            ("framing", whole_only, "--faces is whole"),
        ]
        default = {field.name: field.default for field in dataclasses.fields(self)}
        return [
            f"--{name.replace('_', '-')} has no effect, as {why}"
            for name, is_idle, why in idle
            if is_idle and getattr(self, name) != default[name]
        ]


@command.memory_options("lower --batch-size, or take --device cpu")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.predict") -> None:
    """The command line."""
    tool = parse(Predict, sys.argv[1:] if args is None else args, prog=prog)
    given, pictures = network_and_pictures(tool.names)
    if given is not None and not pictures:
        network = trained.find(given)
        raise ConfigError(f"no images were given: {network} is the network")
    found = image_files([Path(name) for name in pictures])
    for remark in (*tool.without_effect(found.files), *found.left_out, *found.empty):
        print(remark, file=sys.stderr)
    trained.announce(given)
    predictor = Predictor(
        given,
        tool.device,
        tool.faces,
        min_size=tool.min_size,
        min_score=tool.min_score,
        framing=None if tool.framing is None else framing_in(tool.framing),
    )
    check_detector(predictor, found.files)
    with Output(tool, given or pretrained.NAME, predictor.about.class_names, found.files) as output:
        for is_video, group in groupby(found.files, _is_video):
            files = list(group)
            if is_video:
                for path in files:
                    output.video(path, predictor, tool.smooth, tool.seconds)
                continue
            with closing(predictor.stream(files, tool.batch_size, tool.workers)) as answers:
                for path, answer in zip(files, answers, strict=True):
                    output.picture(path, answer)
    for line in output.summary():
        print(line, file=sys.stderr)
    if output.summary() or found.empty:
        sys.exit(1)


def network_and_pictures(names: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """What was given as the network, None where it was left out, and the pictures and videos."""
    if names and _is_video(names[0]):
        trained.check_names(names)
        return None, names
    return trained.split_names(names, video.VIDEO_SUFFIXES)


def check_detector(predictor: Predictor, files: Sequence[str]) -> None:
    """Checks that faces can be found, where that is needed.

    Raises:
        ConfigError: what it needs is not installed.
    """
    if (reason := why_no_detector()) is None:
        return
    for file in files:
        if _is_video(file):
            video.opencv()
            if predictor.faces != "whole":
                raise ConfigError(
                    f"{printable(file)} is a video: {reason}; --faces whole takes every frame as a "
                    "face"
                )
            continue
        try:
            size = image_size(file)
        except UNREADABLE:
            continue  # named when its turn comes
        if not predictor.takes_whole(size):
            raise ConfigError(
                f"{printable(file)} has {size[0]} x {size[1]} pixels, too many for a crop of a "
                f"face: {reason}; --faces whole takes every picture as one"
            )


def framing_in(folder: Path) -> Framing:
    """The framing of the faces in a folder of images.

    Raises:
        ConfigError: the detector is not installed, or finds too few faces there.
    """
    if reason := why_no_detector():
        raise ConfigError(reason)
    if not folder.is_dir():
        raise ConfigError(f"--framing must be a folder of images; got {folder}")
    files = find_images(folder).paths
    framing = framing_of([Sample(file, 0) for file in files])
    if framing is None:
        raise ConfigError(
            f"--framing {folder}: faces were found in too few of its {len(files)} images; eight or "
            "more are needed"
        )
    return framing


class Output(ExitStack):
    """Where the faces go: to the terminal and to what the options name.

    Args:
        tool: the options.
        checkpoint: as JSON names it.
        class_names: in the network's order.
        files: pictures and videos.

    Raises:
        ConfigError: the folder of --overlay is not new or empty.
        OSError: a file cannot be made.
    """

    def __init__(
        self, tool: Predict, checkpoint: str, class_names: Sequence[str], files: Sequence[str]
    ) -> None:
        super().__init__()
        self.top = tool.top
        self.bars = tool.bars
        self.count = len(files)
        self.what = "files" if any(map(_is_video, files)) else "images"
        self.unreadable = self.faceless = self.faces = 0
        with ExitStack() as stack:
            self.folder = None if tool.overlay is None else PictureFolder(tool.overlay)
            self.table = self.list = None
            if tool.csv is not None:
                self.table = FaceTable(stack.enter_context(open_table(tool.csv)), class_names)
            if tool.json is not None:
                self.list = stack.enter_context(open_face_list(tool.json, checkpoint, class_names))
            self.bar = stack.enter_context(progress_bar(len(files), unit=self.what[:-1]))
            self.push(stack.pop_all())

    def picture(self, path: str, answer: list[Face] | DataError) -> None:
        """What became of a picture."""
        if isinstance(answer, DataError):
            self.broken(path, answer)
        else:
            drawn = None
            if self.folder is not None:
                image = draw(read_image(Sample(path, 0)), answer, bars=self.bars)
                drawn = self.folder.save(path, image)
            self.write(path, answer, drawn=drawn)
            self.faceless += not answer
        self.bar.update()

    def video(self, path: str, predictor: Predictor, smooth: float, seconds: float | None) -> None:
        """Reads a video or a camera, see `cfmrfn.video.read`."""
        has_face = False
        error: DataError | None = None
        try:
            clip = video.Video(path if (camera := video.camera(path)) is None else camera)
        except DataError as reason:
            self.broken(path, reason)
            self.bar.update()
            return
        with ExitStack() as stack:
            stack.enter_context(clip)
            bar = stack.enter_context(progress_bar(clip.frames, unit="frame"))
            stops = stack.enter_context(_stopped_by_interrupt()) if clip.is_live else []
            drawn = name = None
            if self.folder is not None:
                name = self.folder.name_for(path, "-faces.mp4")
                drawn = stack.enter_context(video.VideoWriter(name, clip.rate))
                if clip.rate < clip.said_rate:
                    tqdm.write(
                        on_one_line(
                            f"{name} has {clip.rate:g} frames per second, as {clip.said_rate:g}, "
                            f"which {path} says, are unlikely"
                        ),
                        file=sys.stderr,
                    )
            frames = stack.enter_context(
                closing(video.read(clip, predictor, smooth=smooth, limit=seconds))
            )
            try:
                for frame in frames:
                    has_face |= bool(frame.faces)
                    self.write(path, frame.faces, frame.number, frame.seconds, name)
                    if drawn is not None:
                        names = [f"#{face.track}" for face in frame.faces]
                        image = draw(
                            frame.pixels, frame.faces, bars=self.bars, names=names, grow=False
                        )
                        drawn.write(image, frame.seconds)
                    bar.update()
                    if clip.is_live:
                        sys.stdout.flush()
                    if stops:
                        break
            except DataError as reason:  # of what was read, all is kept
                error = reason
        if error is not None:
            self.broken(path, error)
        elif not has_face:
            self.faceless += 1
        self.bar.update()

    def broken(self, path: str, error: DataError) -> None:
        """Names a file that cannot be read."""
        self.unreadable += 1
        tqdm.write(on_one_line(str(error)), file=sys.stderr)
        if self.table is not None:
            self.table.write(path, None)
        if self.list is not None:
            self.list.write_error(path, str(error))

    def write(
        self,
        path: str,
        faces: Sequence[Face],
        frame: int | None = None,
        seconds: float | None = None,
        drawn: Path | None = None,
    ) -> None:
        """The faces of a picture, or of a frame of a video; `drawn`: its file of --overlay."""
        if self.table is not None:
            self.table.write(path, faces, frame, seconds)
        if self.list is not None:
            self.list.write(path, faces, frame, seconds, None if drawn is None else drawn.name)
        # a bar on the terminal makes room for lines there
        say = tqdm.write if sys.stdout.isatty() else print
        name = on_one_line(path)
        when = "" if seconds is None else f"  {seconds:.2f} s"
        for number, face in enumerate(faces, 1):
            number = face.track or number
            where = "" if face.score is None else f"  face {number} at {place_of(face)}"
            ranked = sorted(face.probabilities.items(), key=lambda item: -item[1])[: self.top]
            scores = "  ".join(f"{on_one_line(each)} {value:.3f}" for each, value in ranked)
            say(f"{name}{when}{where}  {scores}")
        if not faces:
            say(f"{name}{when}  no face found")
        self.faces += len(faces)
        rate = self.faces / max(self.bar.format_dict["elapsed"], 1e-3)
        self.bar.set_postfix_str(f"{rate:.1f} faces/s", refresh=False)

    def summary(self) -> list[str]:
        """What went wrong, in lines."""
        lines = []
        if self.unreadable:
            lines.append(f"{self.unreadable} of {self.count} {self.what} could not be read")
        if self.faceless:
            lines.append(f"no face was found in {self.faceless} of {self.count} {self.what}")
        return lines


class PictureFolder:
    """A folder of pictures that are named after others.

    Args:
        path: of the folder, which is made.

    Raises:
        ConfigError: it holds something.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if count := len(os.listdir(path)):
            raise ConfigError(
                f"--overlay must be a new or an empty folder; {path} holds {count} files or folders"
            )
        self.path = path
        self.taken: dict[str, int] = {}

    def name_for(self, path: str, suffix: str) -> Path:
        """A file named after `path` that no other has; it is to be written."""
        stem = os.path.splitext(os.path.basename(path))[0]
        while len(os.fsencode(stem)) > 200:  # of 255 that systems allow
            stem = stem[:-1]
        name = stem
        while (key := name.casefold()) in self.taken:  # systems may not tell them apart
            self.taken[stem.casefold()] += 1
            name = f"{stem}-{self.taken[stem.casefold()]}"
        self.taken[key] = 1
        return self.path / f"{name}{suffix}"

    def save(self, path: str, image: Image.Image) -> Path:
        """Writes a picture named after `path`, and returns its own."""
        kind, suffix = ("JPEG", ".jpg") if max(image.size) <= MOST_OF_JPEG else ("PNG", ".png")
        name = self.name_for(path, suffix)
        with whole(name) as target:
            save_image(image, target, kind, quality=92)
        return name


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether what is written to one is lost by writing the other."""
    if is_stream(one):
        return False
    return os.path.realpath(one) == os.path.realpath(other)


def _is_video(path: str) -> bool:
    """Whether it is a video or a camera."""
    return video.camera(path) is not None or video.is_video(path)


@contextmanager
def _stopped_by_interrupt() -> Iterator[list[int]]:
    """A list that holds something once Ctrl-C was pressed; pressed again, it interrupts."""
    signals: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, before)


def place_of(face: Face) -> str:
    """Its box, as `left,top 80x100` in pixels."""
    left, top, right, bottom = map(round, face.box)
    return f"{left},{top} {right - left}x{bottom - top}"


if __name__ == "__main__":
    command.run(main)
