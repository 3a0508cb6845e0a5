"""The paper's figures of a checkpoint: `python -m cfmrfn.analyze [CHECKPOINT] --data ROOT`.

::

    analysis.html   all of it on one page that needs nothing else, with receptive fields and rollout
    faces.png       Figs. 4 and 7: landmarks, attention and class evidence on each face
    heads-1.png     attention of each head on the first face, which faces.png averages; ...
    tsne.png        Fig. 6: t-SNE of the pooled features of a split, coloured by class
    tsne.csv        its points: image, true and predicted class, x, y

Attention is what a token, or all tokens on average, gives to the places of each stream in one
encoder layer. Evidence is what each place of each stream adds to the predicted class's logit, after
the last layer. The page says what the other pictures are; `cfmrfn.analysis.explanation` defines
them.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from cfmrfn import errors, trained
from cfmrfn.analysis.embedding import Embedding, embed, pooled_features, tsne_class
from cfmrfn.analysis.explanation import (
    ChosenFace,
    FaceExplanation,
    attention_by_place,
    explain_faces,
)
from cfmrfn.analysis.page import write_page
from cfmrfn.batches import evaluation_loader
from cfmrfn.checkpoint import About
from cfmrfn.classifier import NetworkClassifier
from cfmrfn.config import LayoutName, parse
from cfmrfn.data import ExpressionDataset, Sample, eval_transform
from cfmrfn.errors import ConfigError, DataError
from cfmrfn.figures.pictures import FaceMaps, plot_faces, plot_heads, plot_tsne
from cfmrfn.inference import ReadableBatches, Split, open_split, open_table, reason_of
from cfmrfn.models import CFMRFN
from cfmrfn.models.options import token_grid
from cfmrfn.predictor import Faces, Predictor
from cfmrfn.process import command
from cfmrfn.process.distributed import World
from cfmrfn.whole_files import CsvFile, whole_folder

MOST_FACES = 32  # rows that one figure holds
SKIP = "--on-broken skip leaves such images out"

OnBroken = Literal["error", "skip"]


def faces_in_pictures(
    predictor: Predictor, pictures: Sequence[str], on_broken: OnBroken
) -> tuple[list[ChosenFace], dict[str, str]]:
    """The faces in image files, by the rule of `predictor`.

    Returns:
        The faces; and for each file without any, the reason.

    Raises:
        DataError: a file cannot be read or shows no face, and `on_broken` is "error".
    """
    faces: list[ChosenFace] = []
    left_out = {}
    for picture in pictures:
        name = os.path.basename(picture)
        try:
            found = predictor.prepare(picture).images
            if not len(found):
                raise DataError(f"no face was found in {picture}; --faces whole takes it as one")
        except DataError as error:
            if on_broken == "error":
                raise DataError(f"{error}; {SKIP}") from error
            left_out[picture] = str(error)
            continue
        many = len(found) > 1
        faces += [
            ChosenFace(f"{name}, face {n} of {len(found)}" if many else name, None, image)
            for n, image in enumerate(found, 1)
        ]
    return faces, left_out


def faces_of_classes(
    samples: Sequence[Sample], about: About, on_broken: OnBroken
) -> tuple[list[ChosenFace], dict[str, str]]:
    """The first image of each of the first 32 classes, as evaluation reads it.

    Returns:
        The faces, by class; and for each file that was to be one but cannot be read, the reason.

    Raises:
        DataError: a file cannot be read, and `on_broken` is "error".
    """
    transform = eval_transform(about.image_size, mean=about.mean, std=about.std)
    images = ExpressionDataset(
        samples, about.class_names, transform, color=about.color, at_least=about.image_size
    )
    shown = classes_in(samples)[:MOST_FACES]
    faces: dict[int, ChosenFace] = {}
    left_out = {}
    for index, sample in enumerate(samples):
        if sample.label in faces or sample.label not in shown:
            continue
        try:
            image, _ = images[index]
        except DataError as error:
            if on_broken == "error":
                raise DataError(f"{error}; {SKIP}") from error
            left_out[sample.path] = str(error)
            continue
        name = os.path.basename(sample.path)
        faces[sample.label] = ChosenFace(name, sample.label, image)
    return [faces[label] for label in sorted(faces)], left_out


def classes_in(samples: Sequence[Sample]) -> list[int]:
    """The labels of those classes that have images."""
    return sorted({sample.label for sample in samples})


def maps_of(
    face: FaceExplanation,
    class_names: Sequence[str],
    layer: int,
    grid: tuple[int, int],
    token: tuple[int, int] | None,
) -> FaceMaps:
    """What the pictures show of a face: the attention of one layer, counted from 1."""
    true = () if face.label is None else (class_names[face.label],)
    prediction = f"predicted {class_names[face.predicted]} {face.probabilities.max():.2f}"
    return FaceMaps(
        title=(face.name, *true, prediction),
        face=face.face,
        landmarks=face.landmarks,
        attention={
            stream: attention_by_place(torch.from_numpy(weights[layer - 1]), grid, token).numpy()
            for stream, weights in face.attention.items()
        },
        evidence=face.evidence,
    )


@dataclass(frozen=True)
class Analyze:
    """Show what a checkpoint looks at: attention, landmarks, class evidence, receptive fields and
    the t-SNE of its features.

    Figs. 4 and 7 of the paper, on images of your own or on one face of each class of a data set;
    Fig. 6 needs a data set. All are on one page, analysis.html, and in pictures beside it.
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[CHECKPOINT] [IMAGE ...]"),
    ] = ()
    """CHECKPOINT: best.pt or last.pt of a run, or the run folder, whose best.pt is taken; or a
    folder that was exported as safetensors. Left out, or pretrained: the network that comes with
    the package. IMAGE: image files. None: the first image of each class of --data, of 32 classes at
    most."""
    faces: Faces = "auto"
    """What the images are: whole, one cropped face each; detect, photographs whose faces are found;
    auto takes those of at most 256 x 256 pixels that are nearly square as whole."""
    data: Path | None = None
    """Root folder of a data set, which needs no training split. None: no t-SNE, only the maps of
    the images."""
    layout: LayoutName = "auto"
    """Layout of the data set; auto recognises it."""
    split: str | None = None
    """Split to take images from. None: the one that results are reported on, test or else val."""
    boxes: bool = True
    """Crop to the face boxes of AffectNet's lists, if training did so; --no-boxes for images that
    are cropped."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean: affectnet, rafdb, ferplus or fer2013 labels, or
    class names in order. None: as in training."""
    on_broken: OnBroken = "error"
    """What an image does that is unreadable, or shows no face: stop with its name, or be counted,
    named and skipped."""
    layer: int | None = None
    """Encoder layer whose attention is drawn in the pictures, from 1; the page has all. None: the
    last."""
    token: tuple[int, int] | None = None
    """Row and column of the token whose attention is drawn, from 0 0 at the top left; a token is 32
    x 32 pixels. None: what all tokens attend to on average. The page begins with it."""
    tsne: bool = True
    """Draw the t-SNE of the split's pooled features (needs scikit-learn)."""
    perplexity: float | None = None
    """Of t-SNE: neighbours that count for each image, fewer than there are images. None: 30, or a
    third of the images where there are fewer than 90."""
    seed: int = 0
    """Of t-SNE."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | None = None
    """Processes that decode images. None: one per spare core, at most 8."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., mps; auto takes the NVIDIA or AMD GPU where there is one, else the
    CPU."""
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("analysis")
    """Folder for the page and the pictures, which must not exist."""


@command.memory_options("lower --batch-size, give fewer images, or take --device cpu")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.analyze") -> None:
    """The command line."""
    tool = parse(Analyze, sys.argv[1:] if args is None else args, prog=prog)
    name, images = trained.split_names(tool.names)
    _check(tool, images)
    trained.announce(name)
    path = trained.find(name)
    predictor = Predictor(path, tool.device, tool.faces)
    network, about = _network_of(predictor, path), predictor.about
    grid = token_grid((about.image_size,) * 2)
    layer = _choose_layer(tool.layer, len(network.layers))
    _check_token(tool.token, grid)

    opened: Split | None = None
    samples: Sequence[Sample] = []
    if tool.data is not None:
        boxes = tool.boxes and about.config.images.boxes
        opened = open_split(
            tool.data, tool.layout, tool.split, about, boxes=boxes, digits=tool.digits
        )
        samples = opened.samples
        for remark in opened.remarks():
            print(errors.printable(remark))
    if images:
        chosen, left_out = faces_in_pictures(predictor, images, tool.on_broken)
    else:
        chosen, left_out = faces_of_classes(samples, about, tool.on_broken)
        if (classes := len(classes_in(samples))) > MOST_FACES:
            print(f"faces of the first {MOST_FACES} of {classes} classes are shown")
    if not chosen:
        reasons = errors.first_of(list(left_out.values()), 3)
        raise DataError(f"no image shows a face: {'; '.join(reasons)}")
    if len(chosen) > MOST_FACES:
        raise ConfigError(
            f"{len(chosen)} faces were found, and one figure holds {MOST_FACES}; give fewer images"
        )
    faces = explain_faces(network, about, chosen)

    embedding = None
    if opened is not None and tool.tsne:
        embedding, unreadable = _embedding_of(opened, network, about, tool)
        left_out |= unreadable

    _write(tool, layer, run_name(path), network, about, faces, embedding)

    for reason in errors.first_of(list(left_out.values())):
        print(errors.printable(f"left out: {reason}"), file=sys.stderr)
    if left_out:
        print(f"images left out, unreadable or without a face: {len(left_out)}")
    if network.landmark_backbone is not None and not network.landmark_backbone.is_trained:
        print("no landmarks: the landmark backbone has random weights")
    if network.tokens == "poster_view":
        print('no maps of the expression stream: tokens="poster_view" are no places on the face')
    print(errors.printable(f"faces: {len(faces)}, in {tool.output / 'analysis.html'}"))
    if embedding is not None:
        print(errors.printable(f"t-SNE of {embedding.summary}: {tool.output / 'tsne.png'}"))


def _embedding_of(
    opened: Split, network: CFMRFN, about: About, tool: Analyze
) -> tuple[Embedding, dict[str, str]]:
    """The points of a split's images; and for each file that cannot be read, the reason."""
    samples = opened.samples
    loader = evaluation_loader(
        samples,
        about,
        batch_size=tool.batch_size,
        world=World(tool.device),
        workers=tool.workers,
        on_broken="mark",
    )
    batches = ReadableBatches(loader, samples, tool.on_broken, progress=True)
    features, predicted = pooled_features(network, batches)
    unreadable = set(batches.unreadable)
    embedding = Embedding(
        title=f"{opened.set_name}, {opened.name}",
        root=opened.data,
        samples=[each for index, each in enumerate(samples) if index not in unreadable],
        predicted=predicted,
        points=embed(features, tool.perplexity, tool.seed),
    )
    reasons = {
        samples[index].path: f"cannot read image {reason_of(samples[index])}"
        for index in batches.unreadable
    }
    return embedding, reasons


def _write(
    tool: Analyze,
    layer: int,
    run: str,
    network: CFMRFN,
    about: About,
    faces: Sequence[FaceExplanation],
    embedding: Embedding | None,
) -> None:
    """Draws the pictures and the page into the folder of results, all or none."""
    grid = token_grid((about.image_size,) * 2)
    whose = "all tokens" if tool.token is None else f"token {tool.token[0]}, {tool.token[1]}"
    title = f"{run}: attention of {whose} in layer {layer} of {len(network.layers)}"
    with whole_folder(tool.output) as folder:
        maps = [maps_of(face, about.class_names, layer, grid, tool.token) for face in faces]
        plot_faces(folder / "faces.png", maps, title)
        for number, face in enumerate(maps, 1):
            if face.attention:
                target = folder / f"heads-{number}.png"
                plot_heads(target, face, title, network.head_dilations, tool.token)
        if embedding is not None:
            title = f"{run} on {embedding.title}: {embedding.summary}"
            labels = embedding.labels
            plot_tsne(folder / "tsne.png", embedding.points, labels, about.class_names, title)
            _write_points(folder / "tsne.csv", embedding, about.class_names)
        write_page(folder / "analysis.html", run, network, about, faces, embedding, tool.token)


def run_name(path: Path) -> str:
    """A checkpoint as titles name it: its run's folder and its file, wherever they lie."""
    return "/".join(Path(os.path.abspath(path)).parts[1:][-2:])


def _network_of(predictor: Predictor, path: Path) -> CFMRFN:
    """Raises ConfigError where the weights are not a network of PyTorch."""
    if not isinstance(predictor.classifier, NetworkClassifier):
        raise ConfigError(f"{path} cannot be looked into; give a checkpoint of a run")
    return predictor.classifier.network


def _check(tool: Analyze, images: Sequence[str]) -> None:
    if not images and tool.data is None:
        raise ConfigError("nothing to draw: give image files, or a data set by --data")
    if len(images) > MOST_FACES:
        raise ConfigError(f"images must be {MOST_FACES} or fewer, got {len(images)}")
    if tool.batch_size < 1:
        raise ConfigError(f"batch-size must be 1 or more, got {tool.batch_size}")
    if tool.output.exists():
        raise ConfigError(f"output {tool.output} exists; choose another --output")
    if tool.data is not None and tool.tsne:
        tsne_class()  # fails now rather than after the network has run


def _choose_layer(layer: int | None, depth: int) -> int:
    if layer is None:
        return depth
    if not 1 <= layer <= depth:
        raise ConfigError(f"layer must be 1 to {depth}, got {layer}")
    return layer


def _check_token(token: tuple[int, int] | None, grid: tuple[int, int]) -> None:
    if token is not None and not (0 <= token[0] < grid[0] and 0 <= token[1] < grid[1]):
        raise ConfigError(
            f"token must be a row from 0 to {grid[0] - 1} and a column from 0 to {grid[1] - 1}, "
            f"got {token[0]} {token[1]}"
        )


def _write_points(path: Path, embedding: Embedding, class_names: Sequence[str]) -> None:
    with open_table(path) as file:
        writer = csv.writer(CsvFile(file))
        writer.writerow(["image", "true", "predicted", "x", "y"])
        rows = zip(embedding.samples, embedding.predicted, embedding.points, strict=True)
        for sample, guess, (x, y) in rows:
            names = class_names[sample.label], class_names[guess]
            writer.writerow([sample.path, *names, f"{x:.4f}", f"{y:.4f}"])


if __name__ == "__main__":
    command.run(main)
