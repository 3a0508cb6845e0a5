"""The landmark backbone on the command line: `python -m cfmrfn.landmarks train|evaluate`."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.torch
import timm
import torch
import tyro
from tqdm import tqdm

from cfmrfn import checkpoint, errors, pretrained, tensor_files
from cfmrfn.batches import default_workers
from cfmrfn.checks import check_at_least, check_positive
from cfmrfn.config import parse
from cfmrfn.data import Sample, read_image
from cfmrfn.data.files import find_images
from cfmrfn.data.reading import UNREADABLE, reason
from cfmrfn.data.synthetic.varied import draw_varied_faces
from cfmrfn.errors import ConfigError, DataError, brief, printable
from cfmrfn.faces import why_no_detector
from cfmrfn.landmarks.crops import Faces
from cfmrfn.landmarks.measure import Photographed, measure_drawn, measure_photographs
from cfmrfn.landmarks.training import CropBatches, Learner, new_backbone
from cfmrfn.models.mobilefacenet import MobileFaceNet
from cfmrfn.predictor import is_crop
from cfmrfn.process import command
from cfmrfn.process.distributed import World
from cfmrfn.weights.public_weights import load_landmarks
from cfmrfn.whole_files import is_picture_name, save_image, whole

Preset = Literal["cfmrfn_tiny", "cfmrfn_base"]


@dataclass(frozen=True)
class Train:
    """Train the landmark backbone of a preset on drawn faces, whose landmarks are exact.

    Nothing is downloaded. Faces are drawn first, about 40 a second on each core, then cropped,
    lit and spoilt anew in every epoch. The state is kept beside FILE after each epoch: where it
    was stopped, by Ctrl-C or otherwise, the same command goes on, and gives the same weights.
    """

    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """File of safetensors to write, for `cfmrfn.train --landmarks FILE`. A picture of landmarks on
    held-out faces is written beside it, as FILE with .png in place of its suffix."""
    model: Preset = "cfmrfn_tiny"
    """Preset of the network that the backbone is for."""
    faces: int = 5000
    """Faces to draw for training, each of another person; one takes 77 kB of memory."""
    held_out: int = 600
    """Faces of yet other people to draw, on which the error is measured."""
    epochs: int = 24
    """Passes over the faces, which are spoilt anew in each; more still lower the error."""
    batch_size: int = 32
    """Faces of one step; 4 or more."""
    lr: float = 3e-3
    """Highest learning rate; it rises over the first steps, and falls to 0 by the last (cosine)."""
    precision: Literal["float32", "bf16"] = "float32"
    """Autocast type. On a CPU that computes in it, bf16 was a little faster than float32 for
    cfmrfn_base, and slower for cfmrfn_tiny."""
    half: bool = False
    """Write the weights as float16, for a file of half the size; they are read as float32."""
    seed: int = 0
    """Seed of the faces, the weights, and all that is done to crops."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one. Crops are made on the CPU."""
    workers: int | None = None
    """Processes that make crops. None: one per spare core, at most 8. It does not change the
    result."""

    def __post_init__(self) -> None:
        check_at_least(self, faces=4, held_out=1, epochs=1, batch_size=4, seed=0, workers=0)
        check_positive(self, "lr")

    @property
    def unfinished(self) -> Path:
        """Where the state of the training is kept until its end."""
        return self.output.with_name(f"{self.output.name}.unfinished.pt")

    @property
    def picture(self) -> Path:
        """Where the picture of landmarks goes."""
        return self.output.with_suffix(".png")

    def options(self) -> dict[str, Any]:
        """What decides the weights."""
        elsewhere = ("output", "held_out", "half", "device", "workers")
        fields = [f.name for f in dataclasses.fields(self) if f.name not in elsewhere]
        return {name: getattr(self, name) for name in fields}

    def run(self) -> None:
        saved = self._check_files()
        device = World(self.device).device
        workers = default_workers() if self.workers is None else self.workers
        faces, held_out = (
            Faces(*draw_varied_faces(count, (self.seed, split), workers=workers + 1, progress=True))
            for split, count in enumerate((self.faces, self.held_out))
        )
        learner = Learner(
            new_backbone(self.model, faces, self.seed),
            CropBatches(faces, self.batch_size, self.epochs, self.seed),
            lr=self.lr,
            precision=self.precision,
            device=device,
        )
        if saved is not None:
            with self._state_fits():
                learner.load_state_dict(saved)
        self._train(learner, workers)

        drawn = measure_drawn(learner.network, held_out, self.seed)
        with whole(self.picture) as path:
            save_image(drawn.sheet(), path)
        about = {"options": self.options(), "held out": str(drawn).splitlines()}
        with whole(self.output) as path:
            path.write_bytes(_safetensors(learner.network, half=self.half, about=about))
        self.unfinished.unlink(missing_ok=True)
        print(f"{len(held_out)} faces of other people, {drawn}")
        print(
            errors.printable(f"weights: {self.output}; a picture of some of them: {self.picture}")
        )

    def _check_files(self) -> dict[str, Any] | None:
        """The state to go on from; None: there is none.

        Raises:
            ConfigError, CheckpointError: files are in the way, or there is no place for them.
        """
        if self.output.suffix.lower() == ".png":
            raise ConfigError(f"FILE must not end as its picture does, .png; got {self.output}")
        if not self.output.parent.is_dir():
            raise ConfigError(f"there is no folder {self.output.parent} for {self.output.name}")
        for path in (self.output, self.picture):
            if path.exists():
                raise ConfigError(f"{path} exists: name another file, or remove it")
        if not self.unfinished.exists():
            return None
        saved: dict[str, Any] = tensor_files.read(self.unfinished)
        if not isinstance(saved, dict) or not {"options", "learner"} <= saved.keys():
            raise ConfigError(f"{self.unfinished} is in the way: move it elsewhere")
        with self._state_fits():
            changed = [
                f"{name.replace('_', '-')} {value}, not {saved['options'].get(name)}"
                for name, value in self.options().items()
                if value != saved["options"].get(name)
            ]
            state: dict[str, Any] = saved["learner"]
            epoch = brief(state["epoch"])
        if changed:
            raise ConfigError(
                f"{self.unfinished} is of a training with other options ({', '.join(changed)}): "
                "repeat its command to go on with it, or remove it"
            )
        print(f"goes on after epoch {epoch}")
        return state

    def _state_fits(self) -> AbstractContextManager[None]:
        return checkpoint.fitting(f"{self.unfinished} does not fit the training")

    def _train(self, learner: Learner, workers: int) -> None:
        steps = learner.batches.steps
        bar = tqdm(
            total=self.epochs * steps,
            initial=learner.epoch * steps,
            unit="batch",
            dynamic_ncols=True,
            disable=None,  # shown on a terminal
        )
        total = 0.0
        with bar:
            try:
                for done, loss in enumerate(learner.run(workers), 1):
                    total += loss
                    bar.update()
                    bar.set_postfix(loss=f"{loss:.2f}")
                    if done % steps == 0:
                        self._keep(learner)
                        mean = f"loss {total / steps:.3f} pixels"
                        tqdm.write(f"epoch {learner.epoch:3}/{self.epochs}  {mean}")
                        total = 0.0
            except KeyboardInterrupt:
                tqdm.write(f"stopped; the same command goes on after epoch {learner.epoch}")
                raise

    def _keep(self, learner: Learner) -> None:
        # not into the file: torch.save hides a failed write behind errors about its own position
        content = io.BytesIO()
        torch.save({"options": self.options(), "learner": learner.state_dict()}, content)
        with whole(self.unfinished) as path:
            path.write_bytes(content.getvalue())


@dataclass(frozen=True)
class Evaluate:
    """Measure weights on drawn faces of people that training did not draw, or on photographs.

    On photographs nobody marked the landmarks: there the middles of the eyes, the tip of the nose
    and the corners of the mouth are compared with those that MTCNN finds.
    """

    weights: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE]")] = None
    """Weights of a landmark backbone. None: those that come with the package."""
    model: Preset = "cfmrfn_tiny"
    """Preset that they are for."""
    photos: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of images: crops of faces are seen whole, in larger ones faces are found and cropped
    as for prediction. None: faces are drawn."""
    limit: int | None = None
    """Number of images to take, evenly from the whole folder. None: all."""
    faces: int = 600
    """Faces to draw."""
    seed: int = 0
    """Seed of the drawn faces; of the training for the faces that it held out."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture file to write: some of the faces with what was found in them."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check_at_least(self, limit=1, faces=1, seed=0)

    def run(self) -> None:
        if self.picture is not None and not is_picture_name(self.picture):
            raise ConfigError(f"picture must end as pictures do, .png; got {self.picture}")
        weights = self.weights or pretrained.landmarks(self.model)
        if weights is None:
            raise ConfigError(
                f"no landmark weights for {self.model} come with the package: give FILE"
            )
        whole_network = timm.create_model(self.model)
        load_landmarks(whole_network, weights)
        network = whole_network.landmark_backbone.to(World(self.device).device)
        if self.photos is None:
            drawn = draw_varied_faces(
                self.faces, (self.seed, 1), workers=default_workers() + 1, progress=True
            )
            measured: Any = measure_drawn(network, Faces(*drawn), self.seed)
        else:
            measured = self._on_photographs(network, self.photos)
        print(measured)
        if self.picture is not None:
            with whole(self.picture) as path:
                save_image(measured.sheet(), path)
            print(printable(f"picture: {self.picture}"))

    def _on_photographs(self, network: MobileFaceNet, folder: Path) -> Photographed:
        if why := why_no_detector():
            raise ConfigError(why)
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}")
        paths = find_images(folder).paths
        if self.limit is not None and len(paths) > self.limit:
            places = np.linspace(0, len(paths) - 1, self.limit).astype(int)
            paths = [paths[place] for place in places.tolist()]
        found = measure_photographs(
            network, _pictures(tqdm(paths, unit="image", dynamic_ncols=True, disable=None))
        )
        if found is None:
            raise DataError(f"MTCNN finds no face in the {len(paths)} images of {folder}")
        print(f"{folder}: {len(paths)} images", end=", ")
        return found


def _pictures(paths: Iterable[str]) -> Iterator[tuple[np.ndarray, bool]]:
    """Pixels (height, width, 3) of images, and whether each is a crop of a face."""
    for path in paths:
        try:
            image = read_image(Sample(path, 0))
        except UNREADABLE as error:
            print(printable(f"left out: {path}: {reason(path, error)}"), file=sys.stderr)
            continue
        yield np.asarray(image), is_crop(image.size)


def _safetensors(network: MobileFaceNet, *, half: bool, about: dict[str, Any]) -> bytes:
    """The weights of a network as a file, which says in its header where they come from."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    # in one entry, as several have no order
    data: bytes = safetensors.torch.save(tensors, {"cfmrfn.landmarks": json.dumps(about)})
    return data


COMMAND: Any = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
)


@command.memory_options("lower --batch-size or --faces")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.landmarks") -> None:
    """The command line."""
    parse(
        COMMAND,
        sys.argv[1:] if args is None else args,
        default=tyro.MISSING_NONPROP,
        prog=prog,
    ).run()


if __name__ == "__main__":
    command.run(main)
