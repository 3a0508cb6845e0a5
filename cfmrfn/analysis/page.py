"""What a checkpoint looks at, as one HTML page that needs nothing else: `analysis.html`.

It is made of `page.html`, a template of Jinja2 that escapes what it is given. Pictures are in it as
data. It can be read without its script, which lets a token be chosen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import torch
from matplotlib.colors import to_rgb

import sdwa
from cfmrfn.analysis.embedding import Embedding
from cfmrfn.analysis.explanation import (
    NOT_REACHED,
    FaceExplanation,
    HeadGroup,
    attention_by_place,
    head_groups,
    mixing_shares,
    receptive_field,
    window_of,
)
from cfmrfn.checkpoint import About
from cfmrfn.errors import printable
from cfmrfn.figures.heatmaps import Scale, face_uri, tiles
from cfmrfn.figures.pictures import CLASS_COLORS, NAMES
from cfmrfn.models import CFMRFN
from cfmrfn.models.cfmrfn import KERNEL_SIZE
from cfmrfn.models.fusion import FusionLayer
from cfmrfn.models.options import PIXELS_PER_TOKEN, token_grid

# Lines through the landmarks of iBUG 300-W: first, last, whether it is closed.
LANDMARK_LINES = (
    *((0, 16, False), (17, 21, False), (22, 26, False), (27, 30, False), (31, 35, False)),
    *((36, 41, True), (42, 47, True), (48, 59, True), (60, 67, True)),
)


def write_page(
    path: Path,
    run: str,
    network: CFMRFN,
    about: About,
    faces: Sequence[FaceExplanation],
    embedding: Embedding | None,
    token: tuple[int, int] | None = None,
) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        run: name of the checkpoint.
        network, about: as `checkpoint.load_network` returns them.
        faces: as of `explain_faces`.
        embedding: None: there is no t-SNE.
        token: row and column of the token that is chosen at first. None: the mean of all.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cfmrfn.analysis", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    rows, columns = token_grid((about.image_size,) * 2)
    backbone = network.landmark_backbone
    text = environment.get_template("page.html").render(
        run=run,
        facts=_facts(network, about),
        rows=rows,
        columns=columns,
        depth=len(network.layers),
        kernel_size=KERNEL_SIZE,
        pixels=PIXELS_PER_TOKEN,
        chosen=None if token is None else token[0] * columns + token[1],
        fields=_fields(network, (rows, columns), token),
        groups=[_name(group) for group in head_groups(network)],
        pads=network.head_dilations is not None and _pads(network),
        mixing=_mixing(network, (rows, columns)),
        poster_view=network.tokens == "poster_view" and network.image_backbone is not None,
        landmarks="none" if backbone is None else "trained" if backbone.is_trained else "random",
        streams=len(cast(FusionLayer, network.layers[0]).blocks),
        crosses=cast(FusionLayer, network.layers[0]).cross_fusion,
        **_faces(network, about, faces, (rows, columns)),
        embedding=None if embedding is None else _embedding(embedding, about.class_names),
    )
    path.write_text(text, "utf-8")


def _facts(network: CFMRFN, about: About) -> dict[str, str]:
    """What the checkpoint is, in terms and words."""
    config, layer = about.config, cast(FusionLayer, network.layers[0])
    rows, columns = token_grid((about.image_size,) * 2)
    chosen = "the last"
    if about.chosen_on is not None:
        chosen = f"the best on the {NAMES[about.chosen_on]} images"
    data = os.path.abspath(config.images.data or "")
    total = sum(parameter.numel() for parameter in network.parameters())
    parameters = f"{total / 1e6:.4g} M"
    if network.landmark_backbone is not None:
        frozen = sum(parameter.numel() for parameter in network.landmark_backbone.parameters())
        parameters += f", {frozen / 1e6:.3g} M of them in the landmark backbone, never trained here"
    windows = "all tokens"
    if network.head_dilations is not None:
        dilations = ", ".join(map(str, network.head_dilations))
        windows = f"{KERNEL_SIZE} × {KERNEL_SIZE} windows, dilations {dilations}"
    streams = "one stream, which queries itself"
    if len(layer.blocks) == 2:
        crossed = "query each other" if layer.cross_fusion else "do not meet before their sum"
        streams = f"two streams, which {crossed}"
    heads = sum(len(group.heads) for group in head_groups(network))
    return {
        "Checkpoint": f"epoch {about.epoch} of {config.optim.epochs}, {chosen}",
        "Trained on": "drawn faces" if about.is_drawn else os.path.basename(data),
        "Classes": f"{len(about.class_names)}: {', '.join(about.class_names)}",
        "Network": f"{config.network.preset}: {_count(len(network.layers), 'layer')}, {streams}",
        "Attention": f"{_count(heads, 'head')} over {windows}",
        "Tokens": f"{rows} × {columns} of {network.embed_dim} channels, from "
        f"{about.image_size} × {about.image_size} pixels",
        "Parameters": parameters,
        "Written by": f"sdwa {about.versions.get('sdwa', '?')}; this page by {sdwa.__version__}",
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name(group: HeadGroup) -> dict[str, str]:
    """A group's window and its heads, in words; heads count from 1."""
    first, last, count = group.heads[0] + 1, group.heads[-1] + 1, len(group.heads)
    heads = ", ".join(str(head + 1) for head in group.heads)
    if count > 3 and last - first == count - 1:
        heads = f"{first} to {last}"
    return {
        "window": "all tokens" if group.dilation is None else f"dilation {group.dilation}",
        "heads": f"head {heads}" if count == 1 else f"heads {heads}",
    }


def _pads(network: CFMRFN) -> bool:
    return cast(Any, network.layers[0]).blocks[0].attention.padding_mode == "zeros"


def _mixing(network: CFMRFN, grid: tuple[int, int]) -> list[float] | None:
    """For each layer the mean share that token mixing takes from other tokens; None: no mixing."""
    shares = [mixing_shares(cast(FusionLayer, layer), grid) for layer in network.layers]
    return [1 - each.diagonal().mean().item() for each in shares if each is not None] or None


def _fields(
    network: CFMRFN, grid: tuple[int, int], token: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Receptive fields: of each group of heads, and of all of them where there are several."""
    groups = head_groups(network)
    depth = len(network.layers)
    start = token or (grid[0] // 2, grid[1] // 2)
    shown = [(_name(group), group.span, [group]) for group in groups]
    if len(groups) > 1:
        shown.append(({"window": "all heads", "heads": "together"}, None, groups))
    fields = []
    for name, span, members in shown:
        layers = receptive_field(members, grid, depth)
        once = torch.stack([window_of(group, grid) for group in members]).any(0)
        fields.append(
            {
                **name,
                "span": span,
                # a digit or letter for each query and place
                "layers": "".join(_digit(layer) for layer in layers.flatten().tolist()),
                "start": start[0] * grid[1] + start[1],
                "once": once.sum(1).tolist(),
                "ever": (layers != NOT_REACHED).sum(1).tolist(),
                "taps": once.sum(1).float().mean().item(),
            }
        )
    return fields


def _digit(layer: int) -> str:
    """In base 36; 35 stands for more, too."""
    return "-" if layer == NOT_REACHED else np.base_repr(min(layer, 35), 36).lower()


def _faces(
    network: CFMRFN, about: About, faces: Sequence[FaceExplanation], grid: tuple[int, int]
) -> dict[str, Any]:
    """The faces and their maps, and the scales of these, which all faces share."""
    groups = head_groups(network)
    places = grid[0] * grid[1]
    sources = places * len(cast(FusionLayer, network.layers[0]).blocks)
    attention = [
        {stream: _by_group(weights, groups, grid) for stream, weights in face.attention.items()}
        for face in faces
    ]
    # of all places and of each, as powers of 2 of an even share; a share may be zero
    rollout = [
        {
            stream: [np.log2(np.maximum(shares * sources, 1e-6)) for shares in (each.mean(0), each)]
            for stream, each in face.rollout.items()
        }
        for face in faces
    ]
    everywhere = [maps for face in attention for maps in face.values()]
    evidence = _most([np.abs(maps) for face in faces for maps in face.evidence.values()])
    lift, lift_one = (
        max(0.25, _most([maps[which] for face in rollout for maps in face.values()]))
        for which in (0, 1)
    )
    scales = {
        "mean": Scale("inferno", 0, _most([mean for mean, _ in everywhere]), 0),
        "one": Scale("inferno", 0, _most([each for _, each in everywhere]), 0),
        "evidence": Scale("RdBu_r", -evidence, evidence, 0),
        "rollout": Scale("PuOr_r", -lift, lift, 0),
        "rollout_one": Scale("PuOr_r", -lift_one, lift_one, 0),
    }

    def cell(mean: np.ndarray, each: np.ndarray) -> dict[str, Any]:
        return {
            "mean": scales["mean"].uri(mean),
            "one": scales["one"].uri(tiles(each, grid)),
            "padding": max(0, 1 - float(each.sum(-1).mean())),
        }

    shown = []
    for face, attended, shares in zip(faces, attention, rollout, strict=True):
        parts = {stream: float(maps.mean()) for stream, maps in face.evidence.items()}
        shown.append(
            {
                "name": face.name,
                "label": None if face.label is None else about.class_names[face.label],
                "predicted": about.class_names[face.predicted],
                "probabilities": zip(about.class_names, face.probabilities.tolist(), strict=True),
                "picture": face_uri(face.face),
                "landmarks": None if face.landmarks is None else _landmarks(face),
                "attention": {
                    stream: [[*map(cell, *row)] for row in zip(*maps, strict=True)]
                    for stream, maps in attended.items()
                },
                "rollout": {
                    stream: {
                        "mean": scales["rollout"].uri(mean),
                        "one": scales["rollout_one"].uri(tiles(each, grid)),
                        "share": float(face.rollout[stream].mean(0).sum()),
                    }
                    for stream, (mean, each) in shares.items()
                },
                "evidence": {
                    stream: {"mean": scales["evidence"].uri(maps), "sum": parts[stream]}
                    for stream, maps in face.evidence.items()
                },
                "logit": face.logit,
                "rest": round(face.logit - sum(parts.values()), 2) + 0.0,  # never -0
            }
        )
    return {
        "faces": shown,
        "scales": scales,
        "even": 1 / (places if network.head_dilations is None else KERNEL_SIZE**2),
        "shown_streams": list(faces[0].attention),
    }


def _by_group(
    weights: np.ndarray, groups: Sequence[HeadGroup], grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Means over the heads of each group.

    Args:
        weights: (layers, heads, tokens, tokens), attention.

    Returns:
        (layers, groups, rows, columns) of all queries, (layers, groups, tokens, tokens) of each.
    """
    mean = attention_by_place(torch.from_numpy(weights), grid).numpy()
    members = [list(group.heads) for group in groups]
    return (
        np.stack([mean[:, heads].mean(1) for heads in members], 1),
        np.stack([weights[:, heads].mean(1) for heads in members], 1),
    )


def _most(maps: Sequence[np.ndarray]) -> float:
    """The value that 98 of 100 places stay below: one place would else make all others pale."""
    return float(np.quantile(np.concatenate([each.ravel() for each in maps]), 0.98)) if maps else 1


def _landmarks(face: FaceExplanation) -> dict[str, Any]:
    """Points as fractions of the face's sides in percent, and lines through them."""
    assert face.landmarks is not None
    points = [f"{x:.1f},{y:.1f}" for x, y in 100 * face.landmarks / face.face.shape[1::-1]]
    lines = []
    for first, last, is_closed in LANDMARK_LINES:
        line = points[first : last + 1]
        lines.append(" ".join([*line, line[0]] if is_closed else line))
    return {"points": [point.split(",") for point in points], "lines": lines}


def _embedding(embedding: Embedding, class_names: Sequence[str]) -> dict[str, Any]:
    """Points in a square of 100 x 100, by true class."""
    points = embedding.points - embedding.points.min(0)
    points = 2 + 96 * points / max(points.max(), 1e-12)
    points += (100 - points.max(0) - points.min(0)) / 2
    classes = []
    for label, name in enumerate(class_names):
        turn, place = divmod(label, len(CLASS_COLORS))
        members = np.flatnonzero(embedding.labels == label).tolist()
        color = CLASS_COLORS[place]
        classes.append(
            {
                "name": name,
                "color": "currentColor" if not any(to_rgb(color)) else color,
                "shape": turn % 4,
                "points": [
                    {
                        "x": f"{points[index, 0]:.1f}",
                        "y": f"{100 - points[index, 1]:.1f}",
                        "file": _within(embedding.samples[index].path, embedding.root),
                        "predicted": class_names[embedding.predicted[index]],
                        "right": embedding.predicted[index] == label,
                    }
                    for index in members
                ],
            }
        )
    return {
        "title": embedding.title,
        "summary": embedding.summary,
        "top": f"{points[:, 1].min() - 2:.1f}",
        "height": f"{np.ptp(points[:, 1]) + 4:.1f}",
        "classes": classes,
    }


def _within(path: str, root: str) -> str:
    """`path` as seen from `root`, where it lies within it; else its name."""
    inside = path.startswith(os.path.join(root, ""))
    return os.path.relpath(path, root) if inside else os.path.basename(path)
