"""Geometry of a drawn face: curves in head space from identity and action units, and its pose.

Head space: x to the right of the picture, y down, z towards the viewer, the origin between eyes
and mouth, 1 the half width of an average face. Landmarks are points of the curves that are painted,
so they are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfmrfn.data.synthetic.actions import Actions

Array = NDArray[Any]


@dataclass(frozen=True)
class Identity:
    """Bones and features of one person, in head space units."""

    jaw_width: float
    jaw_shape: float  # below 1 square, above 1 pointed
    chin: float  # y of the chin
    skull: float  # y of the crown, negative
    eye_x: float
    eye_y: float
    eye_width: float  # half
    eye_open: float
    eye_tilt: float  # outer corner up if positive
    iris: float  # radius
    brow_gap: float
    brow_arch: float
    brow_thickness: float
    brow_width: float
    nose_y: float  # y of the nose's base
    nose_width: float
    nose_depth: float
    mouth_y: float
    mouth_width: float  # half
    upper_lip: float
    lower_lip: float


@dataclass(frozen=True)
class Pose:
    """Rotation of the head in radians, and its place in the picture in pixels."""

    yaw: float
    pitch: float
    roll: float
    scale: float  # pixels of 1 in head space
    center: tuple[float, float]

    @cached_property
    def _rotation(self) -> Array:
        """(3, 3), from head space to the viewer's: yaw, then pitch, then roll."""
        cos_y, sin_y = np.cos(self.yaw), np.sin(self.yaw)
        cos_p, sin_p = np.cos(self.pitch), np.sin(self.pitch)
        cos_r, sin_r = np.cos(self.roll), np.sin(self.roll)
        yaw = np.array([(cos_y, 0, sin_y), (0, 1, 0), (-sin_y, 0, cos_y)])
        pitch = np.array([(1, 0, 0), (0, cos_p, -sin_p), (0, sin_p, cos_p)])
        roll = np.array([(cos_r, -sin_r, 0), (sin_r, cos_r, 0), (0, 0, 1)])
        return (roll @ pitch @ yaw).astype(np.float32)

    def project(self, points: Array) -> Array:
        """Points of head space (..., 3) to pixels (..., 2), in weak perspective."""
        turned = points @ self._rotation.T
        nearness = self.scale * (1 + 0.08 * turned[..., 2:])
        return np.asarray(self.center, np.float32) + nearness * turned[..., :2]


def draw_identity(rng: np.random.Generator) -> Identity:
    """A random person."""
    uniform = rng.uniform
    nose_y = uniform(0.22, 0.34)
    mouth_y = nose_y + uniform(0.28, 0.36)
    return Identity(
        jaw_width=uniform(0.84, 1.0),
        jaw_shape=uniform(0.78, 1.12),
        chin=mouth_y + uniform(0.42, 0.54),
        skull=-uniform(1.22, 1.42),
        eye_x=uniform(0.37, 0.44),
        eye_y=-uniform(0.2, 0.28),
        eye_width=uniform(0.185, 0.235),
        eye_open=uniform(0.075, 0.1),
        eye_tilt=uniform(-0.02, 0.05),
        iris=uniform(0.088, 0.105),
        brow_gap=uniform(0.21, 0.27),
        brow_arch=uniform(0.02, 0.08),
        brow_thickness=uniform(0.05, 0.1),
        brow_width=uniform(0.28, 0.34),
        nose_y=nose_y,
        nose_width=uniform(0.16, 0.25),
        nose_depth=uniform(0.26, 0.38),
        mouth_y=mouth_y,
        mouth_width=uniform(0.28, 0.36),
        upper_lip=uniform(0.05, 0.085),
        lower_lip=uniform(0.075, 0.12),
    )


def draw_pose(rng: np.random.Generator, size: int) -> Pose:
    """A random pose in a picture of `size` pixels, near frontal as aligned faces are."""
    degrees = np.pi / 180
    return Pose(
        yaw=float(np.clip(rng.normal(0, 13), -32, 32)) * degrees,
        pitch=float(np.clip(rng.normal(0, 7), -16, 16)) * degrees,
        roll=float(np.clip(rng.normal(0, 5), -14, 14)) * degrees,
        scale=size * rng.uniform(0.345, 0.405),
        center=(size * rng.uniform(0.47, 0.53), size * rng.uniform(0.52, 0.57)),
    )


@dataclass(frozen=True)
class Face:
    """One person showing one expression; curves are (n, 3) arrays in head space.

    Curves of paired features take `side`: -1 for the left of the picture, 1 for the right.
    Parameters `t` run from -1 (outer or left end) to 1 (inner or right end).
    """

    identity: Identity
    actions: Actions

    def surface(self, x: ArrayLike, y: ArrayLike, lift: Array | float = 0.0) -> Array:
        """Points on the front of the head above (x, y), raised by `lift`."""
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        depth = np.sqrt(np.maximum(1 - (x / 1.08) ** 2 - (y / 1.45) ** 2, 0.02))
        points = np.empty((*depth.shape, 3), np.float32)
        points[..., 0], points[..., 1], points[..., 2] = x, y, 0.75 * depth + lift
        return points

    def jaw(self, t: ArrayLike) -> Array:
        """The lower outline, from ear over chin to ear."""
        one, act = self.identity, self.actions
        angle = np.asarray(t, np.float32) * (np.pi / 2)
        ear_y = one.eye_y + 0.05
        chin = one.chin + 0.2 * act.jaw_drop - 0.03 * act.chin_raise
        side = np.abs(np.sin(angle)) ** one.jaw_shape
        x = np.sign(angle) * side * (0.96 - (0.96 - one.jaw_width) * np.sin(2 * np.abs(angle)))
        y = ear_y + (chin - ear_y) * np.abs(np.cos(angle)) ** 0.82
        return np.stack([x, y, 0.25 * np.cos(angle)], axis=-1).astype(np.float32)

    def skull(self, t: ArrayLike, grow: float = 1.0) -> Array:
        """The upper outline, from the left ear over the crown to the right ear."""
        one = self.identity
        angle = np.asarray(t, np.float32) * (np.pi / 2)
        ear_y = one.eye_y + 0.05
        x = 0.96 * grow * np.sign(angle) * np.abs(np.sin(angle)) ** 0.85
        y = ear_y + (one.skull * grow - ear_y) * np.abs(np.cos(angle)) ** 0.9
        return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.float32)

    def eye(self, side: int, t: ArrayLike, lid: str) -> Array:
        """The "upper" or "lower" lid's edge, from the outer corner (t = -1) to the inner one."""
        one, act = self.identity, self.actions
        t = np.asarray(t, np.float32)
        closing = min(act.eyes_close, 1.0)
        upper = one.eye_open * (1 + 0.75 * act.upper_lid_raise - 0.25 * act.lid_tighten)
        upper *= 1 - 0.12 * act.cheek_raise - 0.3 * min(act.nose_wrinkle, 1.0)
        upper *= 1 - 1.35 * closing
        lower = 0.75 * one.eye_open * (1 + 0.2 * act.upper_lid_raise)
        lower *= 1 - 0.5 * min(act.lid_tighten, 1) - 0.45 * min(act.cheek_raise, 1)
        lower = max(lower, 0.018)
        upper = max(upper, -lower + 0.006)
        bulge = (1 - t**2) ** 0.75
        # the upper lid is highest nearer the nose; a sad lid hangs at the outside
        droop = 0.5 * act.inner_brow_raise * (1 - min(act.upper_lid_raise, 1)) * t
        if lid == "upper":
            y = -upper * bulge * (1 + 0.25 * t + 0.35 * droop)
        else:
            y = lower * bulge * (1 - 0.2 * t)
        tilt = one.eye_tilt * (-1 - t) * 0.5 + one.eye_tilt * 0.5
        x = side * (one.eye_x - t * one.eye_width)
        return self.surface(x, one.eye_y + y + tilt, -0.03)

    def brow(self, side: int, t: ArrayLike) -> Array:
        """The brow's middle line, from its outer end (t = -1) to the inner one."""
        one, act = self.identity, self.actions
        t = np.asarray(t, np.float32)
        inner = np.clip((t + 1) / 2, 0, 1)
        outer = 1 - inner
        y = one.eye_y - one.brow_gap - one.brow_arch * (1 - t**2)
        y = y - act.inner_brow_raise * 0.2 * inner**1.2
        y = y - act.outer_brow_raise * (0.12 * outer + 0.05)
        y = y + act.brow_lower * (0.13 * inner**1.5 + 0.03)
        y = y + act.nose_wrinkle * 0.07 * inner
        x = one.eye_x + 0.02 - t * one.brow_width - 0.06 * act.brow_lower * inner
        return self.surface(side * x, y, 0.06)

    def nose_bridge(self, t: ArrayLike) -> Array:
        """From between the eyes (t = -1) to the tip (t = 1)."""
        one = self.identity
        down = (np.asarray(t, np.float32) + 1) / 2
        top = one.eye_y + 0.02
        tip = one.nose_y - 0.07
        return self.surface(0 * down, top + (tip - top) * down, 0.04 + one.nose_depth * down**1.6)

    def nose_base(self, t: ArrayLike) -> Array:
        """Under the nose, from the left wing over the septum to the right wing."""
        one, act = self.identity, self.actions
        t = np.asarray(t, np.float32)
        lifted = 0.06 * act.nose_wrinkle + 0.03 * act.upper_lip_raise
        wide = 1 + 0.18 * act.nose_wrinkle + 0.08 * act.lip_corner_pull
        y = one.nose_y - 0.05 * np.abs(t) ** 1.5 - lifted * np.abs(t)
        lift = 0.05 + 0.6 * one.nose_depth * (1 - np.abs(t) ** 1.5)
        return self.surface(t * one.nose_width * wide, y, lift)

    @cached_property
    def _mouth_width(self) -> float:
        one, act = self.identity, self.actions
        return one.mouth_width * (
            1
            + 0.3 * act.lip_corner_pull
            + 0.12 * act.dimple
            + 0.3 * act.lip_stretch
            - 0.1 * act.lip_press
            - 0.32 * act.jaw_drop
            - 0.06 * act.chin_raise
            - 0.04 * act.inner_brow_raise
        )

    @cached_property
    def mouth_gap(self) -> float:
        """Height of the opening between the lips at the middle."""
        act = self.actions
        parted = max(act.lips_part - 0.12, 0)
        dropped = max(act.jaw_drop - 0.1, 0)
        return (0.13 * parted + 0.36 * dropped) * (1 - 0.9 * min(act.lip_press, 1))

    def _corner(self, x: Array) -> Array:
        """Height of the lip corner of each side of the picture, positive down."""
        act = self.actions
        one_sided = 0.21 * act.dimple * (np.sign(x) == act.dimple_side)
        lowered = 0.15 * act.lip_corner_depress + 0.05 * act.lip_stretch
        return lowered - 0.2 * act.lip_corner_pull - one_sided

    def lip(self, t: ArrayLike, edge: str) -> Array:
        """A lip's edge from the left corner to the right: "upper_outer", "upper_inner",
        "lower_inner" or "lower_outer"."""
        one, act = self.identity, self.actions
        t = np.asarray(t, np.float32)
        full = np.maximum(1 - t**2, 0)
        power = 1.6 + 0.6 * min(act.lip_corner_pull, 1)
        middle = one.mouth_y + self._corner(t) * np.abs(t) ** power
        middle = middle - 0.05 * act.chin_raise * full - 0.02 * act.upper_lip_raise * full
        square = 1.0 - 0.45 * min(act.lip_stretch + act.upper_lip_raise, 1)
        opening = full**square
        raised = 0.07 * act.upper_lip_raise * full**0.6
        thin = 1 - 0.7 * min(act.lip_press, 1)
        gap = self.mouth_gap
        if edge.startswith("upper"):
            y = middle - 0.3 * gap * opening - raised
            if edge == "upper_outer":
                bow = full**0.7 * (1 - 0.28 * np.exp(-((t / 0.16) ** 2)))
                stretched = 1 - 0.25 * min(act.lip_corner_pull, 1)
                y = y - one.upper_lip * thin * stretched * bow
        else:
            y = middle + 0.7 * gap * opening - 0.3 * raised * (gap == 0)
            if edge == "lower_outer":
                stretched = 1 - 0.15 * min(act.lip_corner_pull, 1) + 0.2 * act.chin_raise
                y = y + one.lower_lip * thin * stretched * full**0.62
        shift = 0.05 * act.dimple_side * act.dimple
        return self.surface(t * self._mouth_width + shift, y, 0.1 * full)

    def landmarks(self) -> Array:
        """The 68 points of iBUG 300-W (Sagonas et al., 2013) in its order, (68, 3)."""
        jaw = self.jaw(np.linspace(-1, 1, 17))
        along_brow = np.linspace(-1, 1, 5)
        brows = [self.brow(-1, along_brow), self.brow(1, along_brow[::-1])]
        bridge = self.nose_bridge(np.linspace(-1, 1, 4))
        base = self.nose_base(np.linspace(-0.8, 0.8, 5))
        outer_to_inner, inner_to_outer = (-1, -0.34, 0.34, 1), (1, 0.34, -0.34, -1)
        left = [self.eye(-1, outer_to_inner, "upper"), self.eye(-1, (0.34, -0.34), "lower")]
        right = [self.eye(1, inner_to_outer, "upper"), self.eye(1, (-0.34, 0.34), "lower")]
        outer = [
            self.lip(np.array((-1, -0.6, -0.22, 0, 0.22, 0.6, 1)), "upper_outer"),
            self.lip(np.array((0.6, 0.25, 0, -0.25, -0.6)), "lower_outer"),
        ]
        inner = [
            self.lip(np.array((-0.9, -0.35, 0, 0.35, 0.9)), "upper_inner"),
            self.lip(np.array((0.35, 0, -0.35)), "lower_inner"),
        ]
        return np.concatenate([jaw, *brows, bridge, base, *left, *right, *outer, *inner])
