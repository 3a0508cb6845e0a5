"""What a drawn face looks like apart from its geometry: colours, hair, glasses, light, camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Color = tuple[float, float, float]

# From pale to dark, sRGB 0..255; a person's skin lies between two neighbours.
_SKIN = (
    (250, 218, 196),
    (240, 198, 168),
    (222, 172, 136),
    (190, 136, 98),
    (146, 96, 66),
    (92, 58, 42),
)
_HAIR = ((28, 22, 20), (48, 32, 24), (82, 52, 32), (124, 82, 46), (190, 146, 84), (142, 58, 30))
_GREY_HAIR = (172, 170, 168)
_IRIS = ((62, 40, 26), (92, 60, 34), (110, 94, 50), (84, 112, 84), (88, 124, 156), (120, 140, 156))
_FRAMES = ((24, 24, 28), (70, 44, 30), (150, 150, 156), (120, 30, 40), (36, 52, 92))

HAIR_STYLES = ("bald", "buzz", "short", "swept", "fringe", "curtain", "curly", "receding")


@dataclass(frozen=True)
class Look:
    """What a drawn face looks like apart from its geometry; colours are RGB in 0..1."""

    skin: Color
    hair: Color
    brow: Color
    iris: Color
    lips: Color
    clothes: Color
    background: tuple[Color, Color, Color]
    hair_style: str
    hair_long: bool
    hair_volume: float
    part_side: int  # -1 or 1: where swept hair starts
    age: float  # 0..1, depth of lines at rest
    lashes: float  # 0..1
    beard: float  # 0 none .. 1 full
    moustache: float
    glasses: str  # "", "round", "square" or "dark"
    frame: Color
    freckles: int
    light: tuple[float, float, float]  # towards the light, unit length
    ambient: float  # light in the shade, 0..1
    gaze: tuple[float, float]  # head space units
    occluder: str  # "", "hand", "scarf" or "bar"


@dataclass(frozen=True)
class Camera:
    """What the picture goes through after it is painted."""

    gain: Color
    contrast: float
    saturation: float
    vignette: float
    blur: float  # pixels
    noise: float
    jpeg_quality: int


def draw_look(rng: np.random.Generator) -> Look:
    """A random appearance, light and background."""
    uniform = rng.uniform
    skin = _between(_SKIN, uniform(0, len(_SKIN) - 1))
    darkness = 1 - float(np.mean(skin))
    # dark skin mostly comes with dark hair and eyes
    shades = len(_HAIR) if darkness < 0.42 else 3
    hair = np.asarray(_HAIR[rng.integers(shades)]) / 255 * uniform(0.85, 1.15)
    age = float(rng.beta(1.3, 2.2))
    if rng.random() < age * 0.4:
        hair = hair + (np.asarray(_GREY_HAIR) / 255 - hair) * uniform(0.5, 1)
    iris = np.asarray(_IRIS[rng.integers(len(_IRIS) if darkness < 0.4 else 2)]) / 255
    makeup = rng.random() < 0.3
    lips = np.asarray(skin) * (0.86, 0.64, 0.64)
    if makeup:
        lips = lips + (np.array((0.68, 0.16, 0.22)) - lips) * uniform(0.3, 0.75)
    style = str(rng.choice(HAIR_STYLES, p=(0.05, 0.08, 0.2, 0.18, 0.15, 0.14, 0.12, 0.08)))
    can_be_long = style in ("swept", "fringe", "curtain", "curly")
    bearded = not makeup and rng.random() < 0.28
    glasses = str(rng.choice(("", "round", "square", "dark"), p=(0.76, 0.11, 0.115, 0.015)))
    direction = np.array((uniform(-0.75, 0.75), uniform(-0.7, 0.15), uniform(0.7, 1.0)))
    direction /= np.linalg.norm(direction)
    return Look(
        skin=_color(skin),
        hair=_color(hair),
        brow=_color(np.asarray(hair) * uniform(0.55, 0.85)),
        iris=_color(iris * uniform(0.9, 1.15)),
        lips=_color(lips),
        clothes=_color(uniform(0.08, 0.9, 3)),
        background=(
            _color(uniform(0.15, 0.95) * uniform(0.6, 1, 3)),
            _color(uniform(0.15, 0.95) * uniform(0.6, 1, 3)),
            _color(uniform(0, 1, 3)),
        ),
        hair_style=style,
        hair_long=bool(can_be_long and rng.random() < 0.55),
        hair_volume=uniform(1.07, 1.18),
        part_side=int(rng.choice((-1, 1))),
        age=age,
        lashes=uniform(0.6, 1) if makeup else uniform(0.15, 0.5),
        beard=uniform(0.25, 0.95) if bearded else 0.0,
        moustache=uniform(0.3, 0.95) if bearded and rng.random() < 0.7 else 0.0,
        glasses=glasses,
        frame=_color(np.asarray(_FRAMES[rng.integers(len(_FRAMES))]) / 255),
        freckles=int(rng.integers(15, 50)) if rng.random() < 0.12 else 0,
        light=tuple(direction.tolist()),
        ambient=uniform(0.3, 0.65),
        gaze=(float(rng.normal(0, 0.02)), float(rng.normal(0, 0.01))),
        occluder=str(rng.choice(("", "hand", "scarf", "bar"), p=(0.9, 0.04, 0.02, 0.04))),
    )


def draw_camera(rng: np.random.Generator) -> Camera:
    """A random camera, mostly without visible faults."""
    warmth = rng.normal(0, 0.05)
    exposure = rng.uniform(0.88, 1.22)
    return Camera(
        gain=_color(exposure * np.array((1 + warmth, 1.0, 1 - warmth))),
        contrast=rng.uniform(0.85, 1.15),
        saturation=0.0 if rng.random() < 0.06 else rng.uniform(0.85, 1.2),
        vignette=rng.uniform(0, 0.35),
        blur=rng.uniform(0.3, 1.0) if rng.random() < 0.35 else 0.0,
        noise=abs(float(rng.normal(0, 0.012))),
        jpeg_quality=int(rng.integers(60, 96)),
    )


def _between(stops: tuple[tuple[int, int, int], ...], where: float) -> np.ndarray:
    below = min(int(where), len(stops) - 2)
    low, high = np.asarray(stops[below]) / 255, np.asarray(stops[below + 1]) / 255
    return low + (high - low) * (where - below)


def _color(values: np.ndarray) -> Color:
    red, green, blue = np.asarray(values, float).tolist()
    return (red, green, blue)
