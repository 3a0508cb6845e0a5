"""Drawn faces with room around them, turned further than those of a training set.

They are for learning landmarks: crops of them are framed, turned and spoilt in many ways, see
`cfmrfn.landmarks.crops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from cfmrfn.data.parallel import parallel_map
from cfmrfn.data.samples import EXPRESSIONS
from cfmrfn.data.synthetic.actions import draw_actions
from cfmrfn.data.synthetic.canvas import Array
from cfmrfn.data.synthetic.face import Face, Pose, draw_identity
from cfmrfn.data.synthetic.look import draw_camera, draw_look
from cfmrfn.data.synthetic.paint import paint_face, photograph

SIZE = 160  # side of the pictures; the face takes a little more than half of it

_DEGREES = np.pi / 180


def draw_varied_faces(
    count: int, seeds: Sequence[int], *, workers: int = 1, progress: bool = False
) -> tuple[Array, Array]:
    """Draws people with all expressions, each once.

    Args:
        count: number of faces.
        seeds: decide the faces; other seeds draw other people.
        workers: processes that draw.
        progress: show a progress bar.

    Returns:
        Pictures (count, SIZE, SIZE, 3), RGB, uint8, and their landmarks (count, 68, 2), float32,
        pixels (x, y).
    """
    drawn = parallel_map(
        partial(_draw, tuple(seeds)),
        range(count),
        workers=workers,
        desc="drawing faces",
        unit="face",
        progress=progress,
    )
    pictures, points = zip(*drawn, strict=True)
    return np.stack(pictures), np.stack(points)


def _draw(seeds: Sequence[int], number: int) -> tuple[Array, Array]:
    rng = np.random.default_rng((*seeds, number))
    expression = EXPRESSIONS[number % len(EXPRESSIONS)]
    face = Face(draw_identity(rng), draw_actions(rng, expression))
    look, pose, camera = draw_look(rng), _draw_pose(rng), draw_camera(rng)
    image: Image.Image = photograph(paint_face(face, look, pose, SIZE, rng), camera, rng)
    return np.asarray(image), pose.project(face.landmarks()).astype(np.float32)


def _draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        yaw=float(np.clip(rng.normal(0, 15), -34, 34)) * _DEGREES,
        pitch=float(np.clip(rng.normal(0, 8), -20, 20)) * _DEGREES,
        roll=0.0,  # crops are turned
        scale=SIZE * rng.uniform(0.26, 0.3),
        center=(SIZE * rng.uniform(0.48, 0.52), SIZE * rng.uniform(0.5, 0.54)),
    )
