"""What a network that learned from a data set may be used for, as far as the set's owners say.

This is what a model card tells, and no advice of a lawyer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """What is known of a data set.

    Attributes:
        license: of the weights, as model hubs name it.
        license_name: where that is "other".
        purpose: in few words, for a line that names the weights; empty: not known.
        licence: whose labels and images are, and what follows, in Markdown.
        images: what they are and what they lack, in lines of Markdown.
    """

    license: str = "unknown"
    license_name: str = ""
    purpose: str = ""
    licence: str = (
        "That of the software is not that of the weights. Owners of face data sets commonly allow "
        "non-commercial research only (RAF-DB and AffectNet do), and may bind what is learned from "
        "their images. Whoever publishes these weights must state their licence, in the line "
        "`license:` of this file."
    )
    images: tuple[str, ...] = ()

    def front_matter(self) -> dict[str, str]:
        """The licence as the front matter of a model card has it."""
        values = {"license": self.license, "license_name": self.license_name}
        return {key: value for key, value in values.items() if value}


_FER2013 = (
    "Each image is one face of 48 x 48 grey pixels: colour was never seen, nor detail that so few "
    "pixels do not hold.",
    "The faces were found by an image search for words of emotion, and cropped by a program.",
    "A label sums up the votes of ten people who saw nothing but that image. By the rule "
    "`majority` images on which they disagree are left out, so that clear ones are left.",
    "By that rule 64 % of the 25,060 training images are neutral or happiness, and 119 each "
    "contempt and disgust; the test set has 16 and 18 of these.",
)

# Beginning of a set's name or layout, in lower case -> its terms.
_KNOWN: Mapping[str, Terms] = {
    "ferplus": Terms(
        license="other",
        license_name="research-only",
        purpose="for research",
        licence=(
            "The labels of FERPlus are Microsoft's, under the MIT licence. The images are those of "
            "FER2013, found by an image search and published for a contest in 2013: under what "
            "licence they may be used was never settled by their owners, and whether that binds "
            "what is learned from them is as open. "
            "**So these weights are for research.** They hold no image. Whoever wants to use them "
            "for anything else has to settle that first. The software is under the MIT licence."
        ),
        images=_FER2013,
    ),
    "raf-db": Terms(
        license="other",
        license_name="non-commercial-research",
        purpose="for non-commercial research",
        licence=(
            "The owners of RAF-DB allow non-commercial research only, which these weights then are "
            "for. The software is under the MIT licence."
        ),
    ),
    "affectnet": Terms(
        license="other",
        license_name="non-commercial-research",
        purpose="for non-commercial research",
        licence=(
            "The owners of AffectNet allow non-commercial research only, which these weights then "
            "are for. The software is under the MIT licence."
        ),
    ),
}
DRAWN = Terms(
    license="mit",
    purpose="to try the software",
    licence=(
        "The images are drawn by this software, which is under the MIT licence; no person and no "
        "other data set is in them."
    ),
)


def terms_of(layout: str, set_name: str) -> Terms:
    """The terms of a data set by its name or, where that says nothing, by its layout."""
    for name in (set_name.lower(), layout.replace("rafdb", "raf-db")):
        for start, terms in _KNOWN.items():
            if name.startswith(start):
                return terms
    return Terms()
