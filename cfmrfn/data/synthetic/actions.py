"""Expressions as action units of the Facial Action Coding System (Ekman and Friesen, 1978).

Which units make an expression follows the prototypes of EMFACS; strengths are this package's own.
A drawn face takes one variant of its expression, scales it by an intensity, varies each unit on
its own, and adds a little of the units that do not belong to the expression, as real faces do.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Actions:
    """Strength of each action unit, 0 to about 1.2, with its number in the coding system."""

    inner_brow_raise: float = 0.0  # 1
    outer_brow_raise: float = 0.0  # 2
    brow_lower: float = 0.0  # 4
    upper_lid_raise: float = 0.0  # 5
    cheek_raise: float = 0.0  # 6
    lid_tighten: float = 0.0  # 7
    nose_wrinkle: float = 0.0  # 9
    upper_lip_raise: float = 0.0  # 10
    lip_corner_pull: float = 0.0  # 12
    dimple: float = 0.0  # 14, one side, drawn with a pull of the same corner: contempt
    lip_corner_depress: float = 0.0  # 15
    chin_raise: float = 0.0  # 17
    lip_stretch: float = 0.0  # 20
    lip_press: float = 0.0  # 24
    lips_part: float = 0.0  # 25
    jaw_drop: float = 0.0  # 26
    eyes_close: float = 0.0  # 43
    dimple_side: int = 1  # -1 for the left of the picture, 1 for the right


_VARIANTS = {
    "surprise": (
        Actions(
            inner_brow_raise=1, outer_brow_raise=1, upper_lid_raise=0.8, lips_part=0.6, jaw_drop=1
        ),
        Actions(
            inner_brow_raise=1, outer_brow_raise=1, upper_lid_raise=1, lips_part=0.5, jaw_drop=0.6
        ),
    ),
    "fear": (
        Actions(
            inner_brow_raise=1,
            outer_brow_raise=0.4,
            brow_lower=0.6,
            upper_lid_raise=1,
            lip_stretch=1,
            lips_part=0.7,
            jaw_drop=0.25,
        ),
        Actions(
            inner_brow_raise=1,
            outer_brow_raise=0.3,
            brow_lower=0.6,
            upper_lid_raise=1,
            lid_tighten=0.2,
            lip_stretch=0.9,
            lips_part=0.9,
        ),
    ),
    "disgust": (
        Actions(
            brow_lower=0.5,
            cheek_raise=0.3,
            lid_tighten=0.7,
            nose_wrinkle=1,
            upper_lip_raise=1,
            lips_part=0.45,
        ),
        Actions(
            brow_lower=0.5,
            lid_tighten=0.7,
            nose_wrinkle=1,
            upper_lip_raise=0.6,
            lip_corner_depress=0.5,
            chin_raise=0.9,
        ),
    ),
    "happiness": (
        Actions(cheek_raise=1, lip_corner_pull=1, lips_part=0.8, jaw_drop=0.15),
        Actions(cheek_raise=0.7, lip_corner_pull=1),
        Actions(cheek_raise=1, lip_corner_pull=1, lips_part=0.8, jaw_drop=0.5),
    ),
    "sadness": (
        Actions(
            inner_brow_raise=1,
            brow_lower=0.35,
            lip_corner_depress=1,
            chin_raise=0.6,
            eyes_close=0.25,
        ),
        Actions(
            inner_brow_raise=0.9,
            brow_lower=0.4,
            lip_corner_depress=0.9,
            lips_part=0.2,
            eyes_close=0.4,
        ),
    ),
    "anger": (
        Actions(brow_lower=1, upper_lid_raise=0.4, lid_tighten=0.6, chin_raise=0.3, lip_press=1),
        Actions(
            brow_lower=1,
            upper_lid_raise=0.6,
            lid_tighten=0.6,
            nose_wrinkle=0.2,
            upper_lip_raise=0.4,
            lip_stretch=0.3,
            lips_part=0.9,
            jaw_drop=0.2,
        ),
    ),
    "neutral": (Actions(),),
    "contempt": (
        Actions(dimple=1, lid_tighten=0.25),
        Actions(dimple=1, brow_lower=0.2, lip_press=0.3),
    ),
}

# Units that a blink would contradict.
_WIDE_EYED = ("surprise", "fear", "anger")


def draw_actions(rng: np.random.Generator, expression: str) -> Actions:
    """Random action units of one expression, a name in `EXPRESSIONS`."""
    variants = _VARIANTS[expression]
    variant = variants[int(rng.integers(len(variants)))]
    intensity = 0.5 + 0.55 * rng.beta(2.0, 1.5)
    strengths = {}
    for unit in fields(Actions)[:-1]:
        stray = 0.06 * abs(rng.normal())
        varied = getattr(variant, unit.name) * intensity * rng.uniform(0.75, 1.2)
        strengths[unit.name] = float(min(varied + stray, 1.2))
    if rng.random() < 0.03 and expression not in _WIDE_EYED:
        strengths["eyes_close"] = 1.0
    return Actions(**strengths, dimple_side=int(rng.choice((-1, 1))))
