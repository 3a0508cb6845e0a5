"""Paints a face, from geometry, looks and pose to a picture, and photographs it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageFilter

from cfmrfn.data.synthetic.canvas import Array, Canvas, Mask, ribbon, shadow, taper
from cfmrfn.data.synthetic.face import Face, Pose
from cfmrfn.data.synthetic.look import Camera, Look

_LINE = np.linspace(-1, 1, 15, dtype=np.float32)
_OUTLINE = np.linspace(-1, 1, 33, dtype=np.float32)
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False, dtype=np.float32)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_WHITE = (1.0, 1.0, 1.0)
_BLACK = (0.05, 0.03, 0.03)


def paint_face(face: Face, look: Look, pose: Pose, size: int, rng: np.random.Generator) -> Array:
    """The picture (size, size, 3) in 0..1; `rng` places hairs, freckles and the background."""
    painter = _Painter(face, look, pose, size, rng)
    painter.background()
    painter.hair_behind()
    painter.neck_and_ears()
    painter.head()
    painter.cheeks()
    painter.lines()
    painter.mouth()
    painter.nose()
    for side in (-1, 1):
        painter.eye(side)
        painter.brow(side)
    painter.facial_hair()
    painter.hair_in_front()
    painter.glasses()
    painter.occluder()
    return np.clip(painter.canvas.pixels, 0, 1)


def photograph(picture: Array, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """The picture as a camera takes it: colour, vignette, blur and noise; uint8 RGB."""
    size = len(picture)
    grey = picture.mean(axis=2, keepdims=True)
    picture = grey + camera.saturation * (picture - grey)
    picture = (picture - 0.5) * camera.contrast + 0.5
    across = np.linspace(-1, 1, size, dtype=np.float32)
    falloff = 1 - camera.vignette * 0.5 * (across[:, None] ** 2 + across**2)
    picture = picture * np.asarray(camera.gain, np.float32) * falloff[..., None]
    picture += camera.noise * rng.standard_normal(picture.shape, np.float32)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(camera.blur)) if camera.blur > 0 else image


class _Painter:
    """Paints part after part; lengths are in head space times `unit`, the pixels of 1."""

    def __init__(
        self, face: Face, look: Look, pose: Pose, size: int, rng: np.random.Generator
    ) -> None:
        self.face = face
        self.look = look
        self.pose = pose
        self.rng = rng
        self.canvas = Canvas(size)
        self.unit = pose.scale
        self.light = self._light()
        self.skin = self._lit(look.skin)
        self.hair = self._lit(look.hair)
        outline = np.concatenate([face.jaw(_OUTLINE), face.skull(_OUTLINE[::-1])])
        self.outline = pose.project(outline)

    def on_face(self, x: ArrayLike, y: ArrayLike, lift: Array | float = 0.0) -> Array:
        """Pixels of points on the face's surface."""
        return self.pose.project(self.face.surface(x, y, lift))

    def ellipse(self, x: float, y: float, wide: float, high: float, lift: float = 0.0) -> Array:
        """Pixels around an ellipse on the face's surface."""
        return self.on_face(x + wide * _CIRCLE[:, 0], y + high * _CIRCLE[:, 1], lift)

    def flat(self, points: ArrayLike, depth: float) -> Array:
        """Pixels of (x, y) points at one depth of head space."""
        points = np.asarray(points, np.float32)
        return self.pose.project(np.insert(points, 2, depth, axis=1))

    def below(self, points: Array, distance: float) -> Array:
        """Pixels moved down the picture by a distance of head space."""
        return points + np.array((0, distance * self.unit), np.float32)

    def _light(self) -> Array:
        """Brightness of the head taken as an ellipsoid, (size, size, 1)."""
        pose = self.pose
        grid = np.arange(self.canvas.size, dtype=np.float32) + 0.5
        dx, dy = (grid - pose.center[0]) / self.unit, (grid[:, None] - pose.center[1]) / self.unit
        cos, sin = np.cos(pose.roll), np.sin(pose.roll)
        across = (dx * cos + dy * sin) / 1.08
        down = (dy * cos - dx * sin + 0.08) / 1.42
        radius = np.minimum(across**2 + down**2, 0.97)
        x, y, z = self.look.light
        lit = np.maximum(x * across + y * down + z * np.sqrt(1 - radius), 0)
        ambient = self.look.ambient
        return (ambient + (1 - ambient) * lit * 1.12)[..., None].astype(np.float32)

    def _lit(self, color: ArrayLike) -> Array:
        """A colour under the light, (size, size, 3), reddish where it is dim."""
        warmth = np.array((0.88, 1.0, 1.08), np.float32)
        return np.asarray(color, np.float32) * self.light**warmth

    def background(self) -> None:
        first, second, accent = np.asarray(self.look.background, np.float32)
        across = np.linspace(0, 1, self.canvas.size, dtype=np.float32)
        angle = self.rng.uniform(0, 2 * np.pi)
        slope = across * np.cos(angle) + across[:, None] * np.sin(angle)
        self.canvas.pixels[:] = first + (second - first) * np.clip(slope + 0.3, 0, 1)[..., None]
        for _ in range(2):
            place = self.rng.uniform(0, self.canvas.size, 2)
            extent = self.rng.uniform(0.08, 0.3) * self.canvas.size
            blob = place + extent * _CIRCLE * self.rng.uniform(0.5, 1.5, 2)
            self.canvas.fill(blob, accent, self.rng.uniform(0.05, 0.3), blur=3)

    def neck_and_ears(self) -> None:
        one = self.face.identity
        neck = [(-0.52, 0.2), (-0.5, one.chin), (-0.62, 1.9)]
        neck += [(-x, y) for x, y in reversed(neck)]
        self.canvas.fill(self.flat(neck, -0.25), self.skin * np.float32(0.76))
        rise = one.chin - 1.02
        shirt = [(-2.6, 2.4), (-1.9, 1.55 + rise), (-0.72, 1.2 + rise), (-0.3, 1.42 + rise)]
        shirt += [(-x, y) for x, y in reversed(shirt)]
        self.canvas.fill(self.flat(shirt, -0.3), self._lit(self.look.clothes))
        center = np.array((0.97, one.eye_y + 0.2))
        for side in (-1, 1):
            for extent, dim in ((1.0, 0.9), (0.6, 0.7)):
                ear = (center + extent * _CIRCLE * (0.1, 0.23)) * (side, 1)
                self.canvas.fill(self.flat(ear, -0.12), self.skin * np.float32(dim), blur=0.4)

    def head(self) -> None:
        # first the shadow that the head casts on the neck
        self.canvas.fill(self.below(self.outline, 0.09), _BLACK, 0.3, blur=0.05 * self.unit)
        self.head_mask = self.canvas.fill(self.outline, self.skin)

    def cheeks(self) -> None:
        """Blush, highlights and freckles."""
        unit, one, raised = self.unit, self.face.identity, self.face.actions.cheek_raise
        y = one.nose_y - 0.04 - 0.08 * raised
        rosy = np.array((1.02, 0.82, 0.8), np.float32)
        blush = [self.ellipse(side * 0.56, y, 0.24, 0.19) for side in (-1, 1)]
        self.canvas.fill(blush, lambda skin: skin * rosy, 0.3 + 0.3 * raised, blur=0.1 * unit)
        shine = [self.ellipse(side * 0.52, y - 0.05, 0.12, 0.07) for side in (-1, 1)]
        self.canvas.fill(shine, _WHITE, 0.07 + 0.14 * raised, blur=0.06 * unit)
        forehead = self.ellipse(self.look.light[0] * 0.4, -0.72, 0.35, 0.16)
        self.canvas.fill(forehead, _WHITE, 0.11, blur=0.12 * unit)
        if self.look.freckles:
            places = self.rng.normal((0, 0.08), (0.32, 0.13), (self.look.freckles, 2))
            spots = [self.ellipse(x, y, 0.014, 0.014, 0.05) for x, y in places]
            self.canvas.fill(spots, shadow(0.4), 0.6)

    def lines(self) -> None:
        """The lines that action units and years fold into the skin."""
        one, act, age = self.face.identity, self.face.actions, self.look.age
        smile = max(act.lip_corner_pull - 0.15, 0)
        fold = 0.08 + 0.25 * age + 0.6 * smile + 0.5 * act.nose_wrinkle + 0.35 * act.upper_lip_raise
        feet = 0.7 * max(act.cheek_raise - 0.25, 0) + 0.25 * age
        bag = 0.15 + 0.25 * age + 0.45 * act.cheek_raise + 0.25 * act.lid_tighten
        wrinkled = max(act.nose_wrinkle - 0.2, 0)
        frown = max(act.brow_lower - 0.1, 0) + 0.4 * wrinkled + 0.1 * age
        raised = 0.15 * age + 0.65 * max(act.inner_brow_raise - 0.15, 0)

        sides = np.array((-1.0, 1.0))
        corners = self.face.lip(sides, "upper_inner")
        wings = self.face.nose_base(sides)
        down = _LINE * 0.5 + 0.5
        folds, crows_feet, bags, nose_lines, frowns = [], [], [], [], []
        for side, corner, wing in zip(sides, corners, wings, strict=True):
            # from the wing of the nose around the corner of the mouth
            out = corner[0] + side * (0.06 + 0.05 * smile) - wing[0]
            x = wing[0] + out * down**0.8 + side * 0.05 * np.sin(down * np.pi)
            folds.append(self.on_face(x, wing[1] - 0.03 + (corner[1] - wing[1] + 0.01) * down))
            reach = np.linspace(0.05, 0.17, 5)
            x, y = one.eye_x + one.eye_width, one.eye_y + 0.02
            for turn in (-0.35, 0.05, 0.45):
                line = self.on_face(side * (x + reach * np.cos(turn)), y + reach * np.sin(turn))
                crows_feet.append(line)
            lid = self.face.eye(int(side), _LINE * 0.85, "lower")
            bags.append(self.on_face(lid[:, 0], lid[:, 1] + 0.065 + 0.02 * (1 - _LINE**2)))
            x = np.linspace(0.05, 0.16, 5)
            for y in one.eye_y + np.array((0.1, 0.17, 0.24)):
                nose_lines.append(self.on_face(side * x, y - 0.45 * (x - 0.05), 0.14))
            t = np.linspace(-1, 1, 6)
            frowns.append(self.on_face(side * (0.075 - 0.015 * t), one.eye_y - 0.2 + 0.11 * t))
        arch = one.eye_y - one.brow_gap - 0.27 - 0.04 * np.cos(_LINE * 2)
        spread = (0.35 + 0.3 * min(act.outer_brow_raise, 1)) * _LINE
        forehead = [self.on_face(spread, arch - rise) for rise in (0, 0.1, 0.2)]

        self._creases(folds, min(fold, 0.95), 0.045)
        self._creases(crows_feet, 0.6 * feet, 0.022)
        self._creases(bags, 0.6 * min(bag, 0.8), 0.035)
        self._creases(nose_lines, 0.85 * wrinkled, 0.032)
        self._creases(frowns, 0.8 * min(frown, 1), 0.035)
        self._creases(forehead, min(raised, 0.75), 0.03)

    def _creases(self, lines: list[Array], strength: float, width: float) -> None:
        """Folds in the skin: dark lines with a lit edge under them."""
        if strength < 0.04:
            return
        soft = 0.012 * self.unit
        folds = [ribbon(line, taper(len(line), width * self.unit)) for line in lines]
        self.canvas.fill(folds, shadow(0.55), 0.75 * strength, blur=soft)
        edges = [self.below(fold, 0.6 * width) for fold in folds]
        self.canvas.fill(edges, _WHITE, 0.08 * strength, blur=soft)

    def eye(self, side: int) -> None:
        canvas, unit, one, act = self.canvas, self.unit, self.face.identity, self.face.actions
        upper = self.pose.project(self.face.eye(side, _LINE, "upper"))
        lower = self.pose.project(self.face.eye(side, _LINE, "lower"))
        socket = self.ellipse(side * one.eye_x, one.eye_y - 0.05, 0.27, 0.17, -0.05)
        canvas.fill(socket, shadow(0.3), 0.5, blur=0.06 * unit)
        # the lid between its edge and its crease
        lift = 0.055 + 0.03 * (1 - min(act.upper_lid_raise, 1)) + 0.08 * min(act.eyes_close, 1)
        crease = upper.copy()
        crease[:, 1] -= lift * unit * np.sqrt(np.maximum(1 - _LINE**2, 0))
        canvas.fill(np.concatenate([upper, crease[::-1]]), shadow(0.1), 0.8, blur=0.4)
        canvas.fill(ribbon(crease, taper(15, 0.03 * unit)), shadow(0.5), 0.55, blur=0.3)

        opening = np.concatenate([upper, lower[::-1]])
        white = np.array((0.95, 0.93, 0.92), np.float32) * (0.35 + 0.65 * self.light)
        eye = canvas.fill(opening, white)
        self._iris(side, eye)
        shade = ribbon(self.below(upper, 0.02), 0.06 * unit)
        canvas.fill(shade, _BLACK, 0.4, blur=0.02 * unit, within=eye)
        lash = np.asarray(_BLACK) + 0.25 * np.asarray(self.look.brow)
        lashes = [ribbon(upper, taper(15, (0.035 + 0.035 * self.look.lashes) * unit, 0.35))]
        if self.look.lashes > 0.5:
            flick = upper[0] + np.array([(0, 0), (side * 0.05, -0.035)], np.float32) * unit
            lashes.append(ribbon(flick, np.array((0.03, 0.005)) * unit))
        canvas.fill(lashes, lash, 0.95)
        canvas.fill(ribbon(lower, taper(15, 0.022 * unit)), lash * 0.6, 0.5)

    def _iris(self, side: int, eye: Mask) -> None:
        one, (gaze_x, gaze_y) = self.face.identity, self.look.gaze
        center = self.on_face(side * (one.eye_x - 0.01) + gaze_x, one.eye_y - 0.01 + gaze_y)
        radius = one.iris * self.unit
        color = np.asarray(self.look.iris)

        def disc(x: float, y: float, extent: float) -> Array:
            return center + radius * (np.array((x, y), np.float32) + extent * _CIRCLE)

        self.canvas.fill(disc(0, 0, 1), color * 0.45, within=eye)
        self.canvas.fill(disc(0, 0, 0.86), color, within=eye)
        self.canvas.fill(disc(0, 0.3, 0.55), 0.55 * color + 0.45, 0.5, blur=0.4, within=eye)
        self.canvas.fill(disc(0, 0, 0.46), (0.02, 0.02, 0.02), within=eye)
        toward = 0.38 if self.look.light[0] > 0 else -0.38
        self.canvas.fill(disc(toward, -0.38, 0.24), _WHITE, 0.95, within=eye)

    def brow(self, side: int) -> None:
        unit, one = self.unit, self.face.identity
        line = self.pose.project(self.face.brow(side, _LINE))
        widths = one.brow_thickness * unit * (0.3 + 0.75 * np.sqrt((_LINE + 1) / 2 + 0.02))
        self.canvas.fill(ribbon(line, widths), self.look.brow, 0.8, blur=0.012 * unit)
        roots = self.rng.uniform(-0.9, 0.95, 7)
        tips = self.pose.project(self.face.brow(side, roots - 0.22))
        roots = self.pose.project(self.face.brow(side, roots))
        thick = one.brow_thickness * unit
        tips[:, 1] -= thick * self.rng.uniform(0.05, 0.4, 7)
        roots[:, 1] += thick * 0.2
        hairs = [ribbon(np.stack(hair), 0.014 * unit) for hair in zip(roots, tips, strict=True)]
        self.canvas.fill(hairs, np.asarray(self.look.brow) * 0.6, 0.7)

    def nose(self) -> None:
        canvas, unit, one, act = self.canvas, self.unit, self.face.identity, self.face.actions
        bridge = self.pose.project(self.face.nose_bridge(_LINE))
        base = self.face.nose_base(_LINE)
        lit_side = 1 if self.look.light[0] > 0 else -1
        flank = self.on_face(
            -lit_side * np.array((0.08, 0.09, 0.5 * one.nose_width, 1.05 * one.nose_width)),
            np.array((one.eye_y, one.eye_y + 0.2, one.nose_y - 0.17, one.nose_y - 0.03)),
        )
        flank = np.concatenate([bridge[2:], flank[::-1]])
        canvas.fill(flank, shadow(0.3), 0.5, blur=0.035 * unit)
        under = ribbon(self.below(self.pose.project(base), 0.03), taper(15, 0.1 * unit))
        canvas.fill(under, shadow(0.4), 0.5, blur=0.03 * unit)
        turn = np.linspace(-1.2, 1.3, 9)
        x = abs(base[0, 0]) - 0.043 + 0.06 * np.cos(turn)
        y = base[0, 1] - 0.015 + 0.075 * np.sin(turn)
        wings = [ribbon(self.on_face(s * x, y, 0.08), taper(9, 0.035 * unit)) for s in (-1, 1)]
        canvas.fill(wings, shadow(0.5), 0.55 + 0.3 * min(act.nose_wrinkle, 1), blur=0.3)
        centers = self.pose.project(self.face.nose_base(np.array((-0.46, 0.46))))
        oval = _CIRCLE * np.array((0.062, 0.03), np.float32) * unit
        canvas.fill([center + oval for center in centers], shadow(0.75), 0.85, blur=0.3)
        canvas.fill(ribbon(bridge[3:12], 0.06 * unit), _WHITE, 0.14, blur=0.03 * unit)
        tip = bridge[-1] + unit * (np.array((0.04 * lit_side, -0.02)) + 0.06 * _CIRCLE)
        canvas.fill(tip, _WHITE, 0.26, blur=0.025 * unit)

    def mouth(self) -> None:
        canvas, unit, one, act = self.canvas, self.unit, self.face.identity, self.face.actions
        upper_outer, upper_inner, lower_inner, lower_outer = (
            self.pose.project(self.face.lip(_LINE, edge))
            for edge in ("upper_outer", "upper_inner", "lower_inner", "lower_outer")
        )
        lips = self._lit(self.look.lips)
        chin = ribbon(self.below(lower_outer[4:11], 0.06), taper(7, 0.07 * unit))
        canvas.fill(chin, shadow(0.35), 0.35 + 0.3 * act.chin_raise, blur=0.03 * unit)
        if act.chin_raise > 0.2:
            dent = self.ellipse(0, one.chin - 0.2, 0.16, 0.06)
            canvas.fill(dent, shadow(0.35), 0.5 * act.chin_raise, blur=0.035 * unit)

        if self.face.mouth_gap > 0:
            opening = np.concatenate([upper_inner, lower_inner[::-1]])
            inside = canvas.fill(opening, (0.2, 0.05, 0.06))
            self._inside_mouth(upper_inner, lower_inner, inside)
        upper = np.concatenate([upper_outer, upper_inner[::-1]])
        lower = np.concatenate([lower_inner, lower_outer[::-1]])
        canvas.fill(upper, lips * np.float32(0.82), 0.9, blur=0.3)
        canvas.fill(lower, lips, 0.9, blur=0.3)
        middle = ribbon((lower_inner + lower_outer)[4:11] / 2, taper(7, 0.045 * unit))
        canvas.fill(middle, _WHITE, 0.2, blur=0.02 * unit)
        dark = lips * np.float32(0.35)
        canvas.fill(ribbon(upper_inner, taper(15, 0.03 * unit, 0.5)), dark, 0.85)
        corners = [end + 0.022 * unit * _CIRCLE for end in (upper_inner[0], upper_inner[-1])]
        canvas.fill(corners, dark, 0.6, blur=0.5)
        if act.dimple > 0.2:
            side = act.dimple_side
            x, y, _ = self.face.lip(np.array((side * 1.0,)), "upper_inner")[0]
            turn = np.linspace(-1.2, 1.2, 9)
            pit = self.on_face(x + side * (0.03 + 0.05 * np.cos(turn)), y + 0.1 * np.sin(turn))
            self._creases([pit], 0.95 * min(act.dimple, 1), 0.05)

    def _inside_mouth(self, upper: Array, lower: Array, inside: Mask) -> None:
        canvas, unit, act = self.canvas, self.unit, self.face.actions
        gap = self.face.mouth_gap
        if gap > 0.2:
            tongue = ribbon(self.below(lower[2:13], -0.1 * min(gap, 0.3)), taper(11, 0.16 * unit))
            canvas.fill(tongue, (0.66, 0.3, 0.32), blur=0.03 * unit, within=inside)
        enamel = np.array((0.96, 0.94, 0.9), np.float32) * (0.4 + 0.6 * self.light)
        shown = 0.1 if max(act.lip_corner_pull, act.upper_lip_raise) > 0.3 else 0.065
        teeth = np.concatenate([upper[1:14], self.below(upper[13:0:-1], shown)])
        canvas.fill(teeth, enamel, 0.95, within=inside)
        if max(act.lip_stretch, act.upper_lip_raise) > 0.2 and act.lips_part > 0.3:
            teeth = np.concatenate([lower[2:13], self.below(lower[12:1:-1], -0.05)])
            canvas.fill(teeth, enamel, 0.85, within=inside)
        top = ribbon(self.below(upper, 0.01), 0.05 * unit)
        canvas.fill(top, (0.12, 0.03, 0.04), 0.4, blur=0.015 * unit, within=inside)

    def facial_hair(self) -> None:
        canvas, unit, one, look = self.canvas, self.unit, self.face.identity, self.look
        color = self.hair * np.float32(0.85)
        if look.beard:
            lip = self.face.lip(_LINE, "lower_outer")
            jaw = self.face.jaw(_OUTLINE[3:-3] * 0.98)
            jaw[:, 2] += 0.2
            ear_x, ear_y = jaw[-1, :2]
            x = np.linspace(ear_x * 0.96, -ear_x * 0.96, 17)
            reach = np.abs(x) / ear_x
            y = one.mouth_y + 0.1 * reach + (ear_y - one.mouth_y - 0.05) * reach**3
            around_mouth = np.abs(x) < abs(lip[0, 0]) + 0.06
            y[around_mouth] = np.interp(x[around_mouth], lip[:, 0], lip[:, 1]) + 0.05
            beard = self.pose.project(np.concatenate([jaw, self.face.surface(x, y)]))
            canvas.fill(beard, color, look.beard * 0.75, blur=0.05 * unit, within=self.head_mask)
        if look.moustache:
            lip = self.face.lip(_LINE, "upper_outer")
            ridge = lip.copy()
            rise = 0.62 * (lip[7, 1] - one.nose_y - 0.05)
            ridge[:, 1] -= 0.01 + rise * np.sqrt(np.maximum(1 - _LINE**2, 0))
            shape = self.pose.project(np.concatenate([lip, ridge[::-1]]))
            canvas.fill(shape, color, look.moustache * 0.85, blur=0.02 * unit)

    def hair_behind(self) -> None:
        look = self.look
        if look.hair_style == "bald":
            return
        if look.hair_long:
            crown = self.face.skull(_OUTLINE, look.hair_volume + 0.06)
            side = 1.0 + self.rng.uniform(0.12, 0.3)
            length = self.rng.uniform(1.1, 2.4)
            # down the right side, rounded at the ends, and up the left
            turn = np.linspace(0, np.pi, 15)
            ends = np.column_stack([np.cos(turn) * side, length + 0.12 * np.sin(turn)])
            falls = np.concatenate([[(side, 0.3)], ends, [(-side, 0.3)]])
            falls = np.insert(falls.astype(np.float32), 2, -0.3, axis=1)
            shape = self.pose.project(np.concatenate([crown, falls]))
            self.canvas.fill(shape, self.hair * np.float32(0.7), blur=0.5)
        if look.hair_style == "curly":
            self._curls(1.1, 26, 0.2)

    def _curls(self, grow: float, count: int, extent: float) -> None:
        reach = 1.35 if self.look.hair_long else 1.0
        t = np.linspace(-reach, reach, count) + self.rng.normal(0, 0.02, count)
        centers = self.pose.project(self.face.skull(t, grow))
        radii = extent * self.unit * self.rng.uniform(0.7, 1.2, count)
        curls = [c + r * _CIRCLE for c, r in zip(centers, radii, strict=True)]
        for tone, brightness in enumerate((0.7, 0.9, 1.1)):
            self.canvas.fill(curls[tone::3], self.hair * np.float32(brightness), blur=0.6)

    def _hairline(self) -> Array:
        """Where hair meets the forehead, from right to left, in head space."""
        look, one = self.look, self.face.identity
        x = np.linspace(0.94, -0.94, 29).astype(np.float32)
        reach = np.abs(x) / 0.94
        along = x * look.part_side / 0.94
        height = {
            "buzz": -0.86 - 0.02 * np.cos(5 * x),
            "short": -0.84 + 0.05 * np.cos(6 * x),
            "swept": -0.8 + 0.16 * along - 0.12 * np.exp(-(((along - 0.45) / 0.2) ** 2)),
            "fringe": -0.6 - 0.03 * np.sin(17 * x) * np.sin(5 * x + 1),
            "curtain": -0.97 + 0.42 * reach**0.8,
            "curly": -0.82 + 0.05 * np.sin(19 * x),
            "receding": -0.9 - 0.22 * np.exp(-(((reach - 0.5) / 0.2) ** 2)),
        }[look.hair_style]
        temple = one.eye_y + 0.02
        corner = 8.0 if look.hair_style in ("swept", "fringe", "curtain") else 5.0
        y = height + (temple - height) * reach**corner
        return self.face.surface(x, np.maximum(y, one.skull + 0.06))

    def hair_in_front(self) -> None:
        look, unit = self.look, self.unit
        if look.hair_style == "bald":
            return
        buzz = look.hair_style == "buzz"
        volume = 1.02 if buzz else look.hair_volume
        hairline = self.pose.project(self._hairline())
        crown = self.pose.project(self.face.skull(_OUTLINE, volume))
        # first the shadow that hair casts on the forehead
        cast = ribbon(self.below(hairline, 0.05), 0.1 * unit)
        self.canvas.fill(cast, shadow(0.4), 0.45, blur=0.03 * unit, within=self.head_mask)
        cap = np.concatenate([crown, hairline])
        edge = 0.04 * unit if buzz else 0.5
        mask = self.canvas.fill(cap, self.hair, 0.75 if buzz else 1.0, blur=edge)

        roots = self.pose.project(self.face.skull(np.linspace(-0.9, 0.9, 24), volume * 0.98))
        tips = hairline[np.linspace(27, 1, 24).astype(int)]
        middle = (roots + tips) / 2 + self.rng.normal(
            (0.08 * look.part_side, 0), 0.04, (24, 2)
        ) * unit
        strands = np.stack([roots, (roots + 2 * middle) / 3, (2 * middle + tips) / 3, tips], axis=1)
        widths = self.rng.uniform(0.03, 0.08, 24) * unit
        locks = [
            ribbon(strand.astype(np.float32), taper(4, width))
            for strand, width in zip(strands, widths, strict=True)
        ]
        tones = self.rng.permutation(24)
        for tone, brightness in enumerate((0.6, 0.75, 1.3, 1.55)):
            lock = [locks[i] for i in tones[tone::4]]
            paint = self.hair * np.float32(brightness)
            self.canvas.fill(lock, paint, 0.35, blur=0.4, within=mask)
        if look.hair_style == "curly":
            self._curls(1.0, 18, 0.15)

    def glasses(self) -> None:
        look, unit, one = self.look, self.unit, self.face.identity
        if not look.glasses:
            return
        exponent = 0.55 if look.glasses == "square" else 1.0
        lens = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** exponent * (0.31, 0.24)
        y = one.eye_y + 0.03
        rims, glares, frame = [], [], []
        for side in (-1, 1):
            x = side * (one.eye_x + 0.01)
            rim = self.on_face(x + lens[:, 0], y + lens[:, 1], 0.14)
            rims.append(rim)
            frame.append(ribbon(np.concatenate([rim, rim[:2]]), 0.045 * unit))
            glare = self.on_face(x + np.array((-0.16, -0.06)), y + np.array((0, -0.15)), 0.14)
            glares.append(ribbon(glare, 0.03 * unit))
            temple = np.array([(x + side * 0.31, y - 0.05, 0.55), (side * 0.99, y - 0.06, 0)])
            frame.append(ribbon(self.pose.project(temple.astype(np.float32)), 0.04 * unit))
        span = np.linspace(-1.5, 1.5, 7)
        bridge = self.on_face(0.073 * span, y - 0.06 - 0.03 * np.cos(span), 0.16)
        frame.append(ribbon(bridge, 0.04 * unit))
        dark = look.glasses == "dark"
        self.canvas.fill(rims, (0.06, 0.06, 0.08) if dark else _WHITE, 0.93 if dark else 0.07)
        self.canvas.fill(frame, look.frame)
        self.canvas.fill(glares, _WHITE, 0.35, blur=0.5)

    def occluder(self) -> None:
        """Something in front of the face, never over more than a corner of the mouth."""
        kind, unit, chin = self.look.occluder, self.unit, self.face.identity.chin
        side = int(self.rng.choice((-1, 1)))
        if kind == "hand":
            along = np.linspace(0, 1, 6)[:, None]
            for finger in range(4):
                base = np.array((side * (0.95 - 0.13 * finger), chin + 0.35))
                tip = np.array((side * (0.78 - 0.12 * finger), 0.45 + 0.1 * abs(finger - 1)))
                line = self.flat(base + (tip - base) * along, 0.6)
                tips = line[-1] + 0.065 * unit * _CIRCLE
                self.canvas.fill(ribbon(line, 0.17 * unit), _BLACK, 0.35, blur=1.0)
                self.canvas.fill([ribbon(line, 0.13 * unit), tips], self.skin, blur=0.4)
        elif kind == "scarf":
            x = np.linspace(-1.3, 1.3, 9)
            top = chin - self.rng.uniform(0.02, 0.12)
            edge = np.column_stack([x, top + 0.06 * (1 - x**2)])
            scarf = np.concatenate([edge, [(1.4, 2.4), (-1.4, 2.4)]])
            self.canvas.fill(self.flat(scarf, 0.3), self._lit(self.look.background[2]))
        elif kind == "bar":
            size = self.canvas.size
            left = self.rng.uniform(-0.05, 0.12) if side < 0 else self.rng.uniform(0.82, 0.95)
            right = left + self.rng.uniform(0.1, 0.16)
            bar = np.array([(left, 0), (right, 0), (right, 1), (left, 1)], np.float32) * size
            self.canvas.fill(bar, self.look.background[2], 0.95, blur=0.6)
