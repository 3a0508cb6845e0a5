"""Letters of pictures: each from a font that has it, or else as a code."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontEntry, fontManager
from PIL import Image, ImageDraw, ImageFont

from cfmrfn.figures import fonts
from cfmrfn.figures.fonts import Letters, families, legible

# comes with matplotlib, and has a letter that DejaVu lacks
STIX = FontEntry(
    fname=str(Path(fonts._REGULAR.fname).with_name("STIXGeneral.ttf")), name="STIXGeneral"
)
ODD = "⌕"


@pytest.fixture
def install(monkeypatch):
    """Makes these the fonts that are installed."""
    monkeypatch.setattr(fonts, "_missing", set())

    def install_only(*entries):
        monkeypatch.setattr(fonts, "_installed", lambda: [*entries])
        fonts._font_of.cache_clear()

    yield install_only
    fonts._font_of.cache_clear()


def test_each_letter_is_from_the_first_font_that_has_it(install):
    install(FontEntry(fname="removed.ttf", name="removed"), STIX)
    assert legible(f"aü{ODD}") == f"aü{ODD}"
    assert families("aü") == ["DejaVu Sans"]
    assert families(f"{ODD}aü{ODD}") == ["DejaVu Sans", "STIXGeneral"]


def test_letters_of_two_fonts_are_written_side_by_side(install):
    install(STIX)
    dejavu, stix = (ImageFont.truetype(font.fname, 20) for font in (fonts._REGULAR, STIX))
    width = dejavu.getlength("ab")
    expected, written = Image.new("L", (60, 30), 255), Image.new("L", (60, 30), 255)
    baseline = 15 + (dejavu.getmetrics()[0] - dejavu.getmetrics()[1]) / 2
    pen = ImageDraw.Draw(expected)
    pen.text((0, baseline), "ab", 0, dejavu, anchor="ls")
    pen.text((width, baseline), ODD, 0, stix, anchor="ls")
    Letters(20).write(ImageDraw.Draw(written), (0, 15), f"ab{ODD}", 0)
    np.testing.assert_array_equal(written, expected)
    assert Letters(20).length(f"ab{ODD}") == width + stix.getlength(ODD)


def test_letters_that_no_font_has_are_codes_and_the_log_says_so_once(install, caplog):
    install()
    assert legible(f"a{ODD}\tb⌖\n") == "a\\u2315 b\\u2316\n"
    assert legible(f"a{ODD}⌗\n") == "a\\u2315\\u2317\n"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(r"no installed font has ⌕, ⌖: pictures show codes of such")


def test_a_line_is_as_long_as_there_is_room(install):
    install()
    letters = Letters(20)
    assert letters.elided("surprise", letters.length("surprise")) == "surprise"
    assert letters.elided("surprise", letters.length("surp…")) == "surp…"
    assert letters.elided("surprise", 0) == "…"


def test_fonts_installed_since_matplotlib_made_its_list(tmp_path, monkeypatch):
    new, broken, boxes = (tmp_path / name for name in ("a.ttf", "b.ttf", "LastResort.ttf"))
    shutil.copy(STIX.fname, new)
    shutil.copy(STIX.fname, boxes)
    broken.write_text("no font")
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [*map(str, (new, broken, boxes))])
    monkeypatch.setattr(fontManager, "ttflist", [fonts._REGULAR])
    assert {font.fname for font in fonts._installed.__wrapped__()} == {str(new)}


def test_usual_fonts_come_before_odd_ones():
    usual = FontEntry(name="A Sans", weight=400)
    odd = [
        FontEntry(name="A Serif", weight="normal"),
        FontEntry(name="A Sans", weight=700),
        FontEntry(name="A Sans", weight=400, style="italic"),
    ]
    assert sorted([*reversed(odd), usual], key=fonts._oddness) == [usual, *odd]
