"""The paper's figures of a checkpoint: `python -m cfmrfn.analyze CHECKPOINT --data ROOT`.

::

    faces.png       Figs. 4 and 7: landmarks, attention and class evidence on each face
    heads-1.png     attention of each head on the first face, which faces.png averages; ...
    tsne.png        Fig. 6: t-SNE of the pooled features of a split, coloured by class
    tsne.csv        its points: image, true and predicted class, x, y

Attention is what a token, or all tokens on average, gives to the places of each stream in one
encoder layer. Evidence is what each place of each stream adds to the predicted class's logit, after
the last layer.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import tyro
from torch import Tensor

from cfmrfn import checkpoint, errors
from cfmrfn.batches import evaluation_loader
from cfmrfn.config import LayoutName, parse
from cfmrfn.data import Sample
from cfmrfn.distributed import World
from cfmrfn.errors import ConfigError
from cfmrfn.inference import open_split, open_table
from cfmrfn.models import CFMRFN, Description
from cfmrfn.models.cfmrfn import token_grid
from cfmrfn.pictures import FaceMaps, plot_faces, plot_heads, plot_tsne

MOST_FACES = 32  # rows that one figure holds


def stream_tokens(description: Description) -> dict[str, Tensor]:
    """The streams in use, in the order of `Description.attention`, and their final tokens."""
    tokens = {"expression": description.image_tokens, "landmark": description.landmark_tokens}
    return {name: found for name, found in tokens.items() if found is not None}


def attention_by_place(
    attention: Tensor, grid: tuple[int, int], token: tuple[int, int] | None = None
) -> Tensor:
    """The weight that places are given.

    Args:
        attention: (..., tokens, tokens), from query to key.
        grid: (rows, columns) of the tokens.
        token: row and column of one query. None: the mean over the queries whose window holds the
            place, so that places near the border, which are in fewer windows, compare with others.

    Returns:
        (..., rows, columns)
    """
    if token is None:
        weights = attention.sum(-2) / (attention > 0).sum(-2).clamp(min=1)
    else:
        weights = attention[..., token[0] * grid[1] + token[1], :]
    return weights.unflatten(-1, grid)


@torch.no_grad()
def class_evidence(network: CFMRFN, description: Description, classes: Tensor) -> dict[str, Tensor]:
    """What each place of each stream adds to the logit of a class.

    The classifier is linear in the normalised sum of the streams (eq. 18) once its gate and that
    norm's scale are given. So the logit is, exactly, the sum over the streams of the mean over the
    places of what is returned here, plus a part from biases.

    Args:
        network: in evaluation mode.
        description: of a batch of images.
        classes: (batch,), an index for each image.

    Returns:
        Stream -> (batch, rows, columns).
    """
    streams = stream_tokens(description)
    fused = torch.stack(list(streams.values())).sum(0)
    gate = network.gate(network.norm(fused).mean((1, 2)))
    direction = cast(torch.nn.Linear, network.head).weight[classes] * gate * network.norm.weight
    scale = (fused.var(-1, correction=0) + network.norm.eps).sqrt()

    def evidence(tokens: Tensor) -> Tensor:
        centred = tokens - tokens.mean(-1, keepdim=True)
        return torch.einsum("bhwc,bc->bhw", centred, direction) / scale

    return {name: evidence(tokens) for name, tokens in streams.items()}


def describe_faces(
    network: CFMRFN,
    about: checkpoint.About,
    samples: Sequence[Sample],
    *,
    layer: int,
    token: tuple[int, int] | None = None,
    with_labels: bool = True,
    world: World,
) -> list[FaceMaps]:
    """What the network makes of each face.

    Args:
        network, about: as `checkpoint.load_network` returns them.
        samples: the images; their labels are in the titles only.
        layer: whose attention, from 1.
        token: row and column of the query; None: all queries.
        with_labels: whether the labels of the samples are known.
        world: whose device the network is on.

    Returns:
        One per sample, in order.
    """
    names = about.class_names
    loader = evaluation_loader(
        samples,
        about,
        batch_size=8,
        world=world,
        workers=0,
    )
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (about.mean, about.std))
    faces = []
    for images, labels in loader:
        seen = network.describe(images.to(world.device))
        probabilities, predicted = seen.logits.softmax(1).max(1)
        evidence = class_evidence(network, seen, predicted)
        tokens = stream_tokens(seen)
        attention = attention_by_place(
            seen.attention[:, layer - 1], token_grid(images.shape[-2:]), token
        )
        # The tokens of "poster_view" are groups of channels and lie nowhere on the face.
        shown = [
            (index, name)
            for index, name in enumerate(tokens)
            if (name, network.tokens) != ("expression", "poster_view")
        ]
        for index, image in enumerate((images * std + mean).clamp(0, 1)):
            title = f"{names[predicted[index]]} {probabilities[index]:.2f}"
            if with_labels:
                title = f"{names[labels[index]]}\npredicted {title}"
            faces.append(
                FaceMaps(
                    title=title,
                    face=(image.flip(0) if about.color == "BGR" else image)
                    .permute(1, 2, 0)
                    .numpy(),
                    landmarks=None if seen.landmarks is None else _array(seen.landmarks[index]),
                    attention={name: _array(attention[index, stream]) for stream, name in shown},
                    evidence={name: _array(evidence[name][index]) for _, name in shown},
                )
            )
    return faces


@torch.inference_mode()
def pooled_features(
    network: CFMRFN, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features (images, embed_dim) and predicted classes (images,)."""
    pooled, predicted = [], []
    for images, _ in batches:
        features = network.forward_features(images.to(device))
        pooled.append(network.forward_head(features, pre_logits=True))
        predicted.append(network.get_classifier()(pooled[-1]).argmax(1))
    return _array(torch.cat(pooled)), _array(torch.cat(predicted))


def embed(features: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008), from the first two principal components.

    Args:
        features: (images, channels).
        perplexity: neighbours that count, more than 0 and less than the number of images.
        seed: of its randomness.

    Returns:
        (images, 2)

    Raises:
        ConfigError: the perplexity is not legal, or scikit-learn is not installed.
    """
    if not 0 < perplexity < len(features):
        raise ConfigError(
            f"perplexity must be above 0 and below the number of images, {len(features)}; "
            f"got {perplexity:g}"
        )
    tsne = _tsne_class()(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return np.asarray(tsne.fit_transform(features))


def _tsne_class() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigError(
            f"t-SNE needs scikit-learn ({error}): pip install scikit-learn, or give --no-tsne"
        ) from error
    return TSNE


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


@dataclass(frozen=True)
class Analyze:
    """Draw a checkpoint's attention and landmarks on faces, and the t-SNE of its features.

    Figs. 4 and 7 of the paper, on images of your own or on one face of each class of a data set
    (faces.png, and head by head heads-1.png, ...); Fig. 6 needs a data set (tsne.png, tsne.csv).
    """

    checkpoint: tyro.conf.Positional[Path]
    """best.pt or last.pt of a run, or the run folder, whose best.pt is taken."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files of one cropped face each. None: the first image of each class of --data."""
    data: Path | None = None
    """Root folder of a data set, which needs no training split. None: no t-SNE, only the maps of
    IMAGES."""
    layout: LayoutName = "auto"
    """Layout of the data set; auto recognises it."""
    split: str | None = None
    """Split to take images from. None: the one that results are reported on, test or else val."""
    boxes: bool = True
    """Crop to the face boxes of AffectNet's lists; --no-boxes for images that are cropped."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean: affectnet, rafdb, ferplus or fer2013 labels, or
    class names in order. None: as in training."""
    layer: int | None = None
    """Encoder layer whose attention is drawn, from 1. None: the last."""
    token: tuple[int, int] | None = None
    """Row and column of the token whose attention is drawn, from 0 0 at the top left; a token is 32
    x 32 pixels. None: what all tokens attend to on average."""
    tsne: bool = True
    """Draw the t-SNE of the split's pooled features (needs scikit-learn)."""
    perplexity: float = 30.0
    """Of t-SNE: neighbours that count for each image, fewer than there are images."""
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
    """Folder for the figures, which must not exist."""


@errors.memory_options("lower --batch-size, give fewer images, or take --device cpu")
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.analyze") -> None:
    """The command line."""
    tool = parse(Analyze, sys.argv[1:] if args is None else args, prog=prog)
    _check(tool)
    path = checkpoint.file_of(tool.checkpoint)
    world = World(tool.device)
    network, about = checkpoint.load_network(path)
    network.to(world.device)
    layer = _choose_layer(tool.layer, len(network.layers))
    _check_token(tool.token, token_grid((about.image_size,) * 2))

    samples: Sequence[Sample] = []
    if tool.data is not None:
        opened = open_split(
            tool.data,
            tool.layout,
            tool.split,
            about,
            boxes=tool.boxes,
            digits=tool.digits,
        )
        samples, source = opened.samples, f"{opened.set_name}, {opened.name}"
        for remark in opened.remarks():
            print(errors.printable(remark))
    first_of_class = list({s.label: s for s in reversed(samples)}.values())
    faces = describe_faces(
        network,
        about,
        [Sample(str(image), 0) for image in tool.images]
        or sorted(first_of_class, key=lambda sample: sample.label),
        layer=layer,
        token=tool.token,
        with_labels=not tool.images,
        world=world,
    )
    whose = "all tokens" if tool.token is None else f"token {tool.token[0]}, {tool.token[1]}"
    title = f"{path}: attention of {whose} in layer {layer} of {len(network.layers)}"

    points = None
    if tool.data is not None and tool.tsne:
        loader = evaluation_loader(
            samples,
            about,
            batch_size=tool.batch_size,
            world=world,
            workers=tool.workers,
        )
        features, predicted = pooled_features(network, loader, world.device)
        points = embed(features, tool.perplexity, tool.seed)

    tool.output.mkdir(parents=True)
    trained = network.landmark_backbone is not None and network.landmark_backbone.is_trained
    plot_faces(tool.output / "faces.png", faces, title, landmarks_trained=trained)
    for number, face in enumerate(faces, 1):
        if face.attention:
            target = tool.output / f"heads-{number}.png"
            plot_heads(target, face, title, network.head_dilations, tool.token)
    if network.tokens == "poster_view":
        print('no maps of the expression stream: tokens="poster_view" are no places on the face')
    print(f"attention and landmarks of {len(faces)} faces: {tool.output / 'faces.png'}")
    if points is not None:
        labels = np.array([sample.label for sample in samples])
        title = (
            f"{path} on {source}: {len(samples)} images, "
            f"accuracy {(predicted == labels).mean():.1%}"
        )
        plot_tsne(tool.output / "tsne.png", points, labels, about.class_names, title)
        _write_points(tool.output / "tsne.csv", samples, predicted, points, about.class_names)
        print(f"t-SNE of {len(samples)} images: {tool.output / 'tsne.png'}")


def _check(tool: Analyze) -> None:
    if not tool.images and tool.data is None:
        raise ConfigError("nothing to draw: give image files, or a data set by --data")
    if len(tool.images) > MOST_FACES:
        raise ConfigError(f"images must be {MOST_FACES} or fewer, got {len(tool.images)}")
    if tool.batch_size < 1:
        raise ConfigError(f"batch-size must be 1 or more, got {tool.batch_size}")
    if tool.output.exists():
        raise ConfigError(f"output {tool.output} exists; choose another --output")
    if tool.data is not None and tool.tsne:
        _tsne_class()  # fails now rather than after the network has run


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


def _write_points(
    path: Path,
    samples: Sequence[Sample],
    predicted: np.ndarray,
    points: np.ndarray,
    class_names: Sequence[str],
) -> None:
    with open_table(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "true", "predicted", "x", "y"])
        for sample, guess, (x, y) in zip(samples, predicted, points, strict=True):
            names = class_names[sample.label], class_names[guess]
            writer.writerow([sample.path, *names, f"{x:.4f}", f"{y:.4f}"])


if __name__ == "__main__":
    errors.run(main)
