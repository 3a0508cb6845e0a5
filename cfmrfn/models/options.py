"""The network's options: what is legal, and what weights tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from cfmrfn.checks import is_whole
from sdwa import head_dilations as allocate_heads

TOKENS = ("spatial", "poster_view")
ATTENTION = ("dilated", "window", "global")
STREAMS = ("both", "expression", "landmark")
PADDING_MODES = ("zeros", "masked")

# The image is halved for the backbones, and the token map is 1/16 of what they see.
PIXELS_PER_TOKEN = 32


def token_grid(image_size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the token map of an image of that (height, width).

    Raises:
        ValueError: the sides are not multiples of 32.
    """
    height, width = image_size
    if (
        min(height, width) < PIXELS_PER_TOKEN
        or height % PIXELS_PER_TOKEN
        or width % PIXELS_PER_TOKEN
    ):
        raise ValueError(
            f"image sides must be multiples of {PIXELS_PER_TOKEN} (224 gives 7 x 7 tokens), "
            f"got {height} x {width}"
        )
    return height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN


def choose_dilations(
    attention: str, head_dilations: Sequence[int] | None, num_heads: int
) -> tuple[int, ...] | None:
    """Dilation of each head; None for global attention.

    Raises:
        ValueError: an argument is not legal, or the two contradict each other.
    """
    check_choice("attention", attention, ATTENTION)
    if attention == "dilated":
        if head_dilations is None:
            return allocate_heads(num_heads, 1 / 4, (2, 3))
        dilations = tuple(head_dilations) if isinstance(head_dilations, Iterable) else ()
        if len(dilations) != num_heads or not all(is_whole(d) and d >= 1 for d in dilations):
            raise ValueError(
                f"head_dilations must be {num_heads} whole numbers of at least 1, one per head, "
                f"got {head_dilations!r}"
            )
        return dilations
    if head_dilations is not None:
        raise ValueError(f'head_dilations has no meaning with attention="{attention}"')
    return (1,) * num_heads if attention == "window" else None


def check_choice(name: str, value: str, legal: tuple[str, ...]) -> None:
    """Raises ValueError where `value` is not one of `legal`."""
    if value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(legal)}; got {value!r}")


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError where `value` is no whole number of at least `least`."""
    if not (is_whole(value) and cast(int, value) >= least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_three(name: str, value: object, least: int) -> None:
    """Raises ValueError where `value` is not three whole numbers of at least `least`."""
    entries = list(value) if isinstance(value, Sequence) else []
    if len(entries) != 3 or not all(is_whole(each) and each >= least for each in entries):
        raise ValueError(f"{name} must be 3 whole numbers of at least {least}, got {value!r}")


def image_sides(img_size: object) -> tuple[int, int]:
    """(height, width) of an `img_size`.

    Raises:
        ValueError: it is neither a whole number nor two.
    """
    sides = tuple(img_size) if isinstance(img_size, list | tuple) else (img_size, img_size)
    if len(sides) != 2 or not all(map(is_whole, sides)):
        raise ValueError(
            f"img_size must be the side or (height, width) in whole pixels, got {img_size!r}"
        )
    return cast(tuple[int, int], sides)


def options_of(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """What the shapes of a network's weights tell of its options."""
    options: dict[str, object] = {}
    if layers := {found[1] for name in tensors if (found := re.match(r"layers\.(\d+)\.", name))}:
        options["depth"] = len(layers)
        one_stream = "expression" if "position" in tensors else "landmark"
        options["streams"] = "both" if any(".blocks.1." in name for name in tensors) else one_stream
        for option, part in (
            ("q_proj", ".q."),
            ("token_mixing", ".mixing."),
            ("pre_norm", ".norm1."),
        ):
            options[option] = any(part in name for name in tensors)
        if options["token_mixing"]:  # together, or for each stream
            options["cross_fusion"] = not any(".mixing.1." in name for name in tensors)
    if (norm := tensors.get("norm.weight")) is not None:
        options["embed_dim"] = len(norm)
    if (head := tensors.get("head.weight")) is not None:
        options["num_classes"] = len(head)
    if (position := tensors.get("position")) is not None:
        options["img_size"] = tuple(PIXELS_PER_TOKEN * side for side in position.shape[:2])
    return options


def why_of_another(
    tensors: Mapping[str, Tensor], network: nn.Module, adapted: Sequence[str] = ()
) -> str | None:
    """What to do where weights are of a network with other options; None: they are not.

    Args:
        tensors: the weights by name.
        network: the `CFMRFN` that they are for.
        adapted: options that may differ.
    """
    own, theirs = options_of(dict(network.named_parameters())), options_of(tensors)
    other = [
        f"{name}={value!r}"
        for name, value in theirs.items()
        if name not in adapted and own.get(name, value) != value
    ]
    if not other:
        return None
    return f"the weights are of a network with {', '.join(other)}; create this one likewise"
