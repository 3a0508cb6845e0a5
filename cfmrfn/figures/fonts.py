"""The fonts of all pictures: DejaVu, which comes with matplotlib, and others that are installed.

Every letter is taken from the first of them that has it. Where none has, pictures show its code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby

import matplotlib
from matplotlib.font_manager import FontEntry, findSystemFonts, fontManager, get_font, weight_dict
from PIL import ImageDraw, ImageFont

from cfmrfn.errors import first_of, printable

_OWN = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
_REGULAR = FontEntry(fname=os.path.join(_OWN, "DejaVuSans.ttf"), name="DejaVu Sans")
_BOLD = FontEntry(fname=os.path.join(_OWN, "DejaVuSans-Bold.ttf"), name="DejaVu Sans")
_missing: set[str] = set()


def legible(text: str) -> str:
    r"""`printable(text)`, in which letters that no font has are codes such as `\u6016`.

    The log says so, once per process.
    """
    text = printable(text).replace("\t", " ")
    missing = {letter for letter in text if letter != "\n" and _font_of(letter) is None}
    if missing and not _missing:
        logging.getLogger(__name__).warning(
            "no installed font has %s: pictures show codes of such letters, as %s. Fonts that have "
            "them are Noto's, for one (on Debian: apt install fonts-noto-core fonts-noto-cjk)",
            *(", ".join(first_of(sorted(missing), 5)), _code(min(missing))),
        )
    _missing.update(missing)
    return "".join(_code(letter) if letter in missing else letter for letter in text)


def families(text: str) -> list[str]:
    """The fonts of a text that is `legible`, as matplotlib takes them."""
    fonts = [_REGULAR, *filter(None, map(_font_of, text))]
    return list(dict.fromkeys(font.name for font in fonts))


@dataclass(frozen=True)
class Letters:
    """For lines of text that are `legible`, on images of Pillow.

    Attributes:
        size: in pixels.
        bold: where there are bold ones, as in DejaVu.
    """

    size: int
    bold: bool = False

    def length(self, text: str) -> float:
        """Width of a line, in pixels."""
        return sum(font.getlength(part) for part, font in self._parts(text))

    def elided(self, text: str, room: float) -> str:
        """As much of a line as there is room for, in pixels."""
        if self.length(text) <= room:
            return text
        while text and self.length(text + "…") > room:
            text = text[:-1]
        return text + "…"

    def write(
        self,
        pen: ImageDraw.ImageDraw,
        place: tuple[float, float],
        text: str,
        fill: str | tuple[int, ...],
    ) -> None:
        """Writes a line whose left end has its middle at `place`, x and y."""
        x, y = place
        ascent, descent = _opened(_REGULAR.fname, self.size).getmetrics()
        baseline = y + (ascent - descent) / 2  # the same for all fonts
        for part, font in self._parts(text):
            pen.text((x, baseline), part, fill, font, anchor="ls")
            x += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        """Stretches of a line whose letters are in one font."""
        for font, letters in groupby(text, lambda letter: _font_of(letter, self.bold) or _REGULAR):
            yield "".join(letters), _opened(font.fname, self.size)


@lru_cache(maxsize=64)
def _opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _font_of(letter: str, bold: bool = False) -> FontEntry | None:
    """The font to take a letter from."""
    return next((font for font in _fonts(bold) if _has(font, letter)), None)


def _fonts(bold: bool) -> Iterator[FontEntry]:
    if bold:
        yield _BOLD
    yield _REGULAR
    yield from _installed()


def _has(font: FontEntry, letter: str) -> bool:
    try:
        return bool(get_font(font.fname).get_char_index(ord(letter)))
    except (OSError, RuntimeError):  # removed since matplotlib made its list of fonts, or damaged
        return False


@cache
def _installed() -> list[FontEntry]:
    """What is installed beside the fonts of matplotlib: upright fonts of usual weight first."""
    for path in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        # installed since matplotlib made its list; some it cannot read, and leaves out there, too
        with suppress(Exception):
            fontManager.addfont(path)
    fonts = [
        font
        for font in fontManager.ttflist
        if not font.fname.startswith(_OWN)
        and "LastResort" not in font.fname  # of macOS, a box for every letter
        and not getattr(font, "index", 0)  # of a collection of fonts, the one that a path opens
    ]
    return sorted(fonts, key=_oddness)


def _oddness(font: FontEntry) -> tuple[object, ...]:
    weight = font.weight if isinstance(font.weight, int) else weight_dict[font.weight]
    is_odd = font.style != "normal" or font.stretch != "normal"
    return is_odd, abs(weight - 400), "Sans" not in font.name, font.name, font.fname


def _code(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
