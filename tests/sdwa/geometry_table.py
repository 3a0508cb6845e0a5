"""Window arithmetic as a table written by hand: what C++ and Triton must both compute.

Everything is about one axis of a map, whose pixels are numbered from 0. Nothing is computed here.
"""

from typing import NamedTuple


class Axis(NamedTuple):
    """One head's window on one axis of a map.

    sources: for each query the coordinate that each tap reads, on the map or off it.
    on_map: for each query whether each tap reads a pixel of the map (#) or not (.).
    phases: the pixels of each phase, in order.
    """

    kernel_size: int
    dilation: int
    length: int
    sources: tuple[tuple[int, ...], ...]
    on_map: tuple[str, ...]
    phases: tuple[tuple[int, ...], ...]


AXES = {
    "one_tap": Axis(
        kernel_size=1,
        dilation=3,
        length=4,
        sources=((0,), (1,), (2,), (3,)),
        on_map=("#", "#", "#", "#"),
        phases=((0, 3), (1,), (2,)),
    ),
    "dense": Axis(
        kernel_size=3,
        dilation=1,
        length=4,
        sources=((-1, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)),
        on_map=(".##", "###", "###", "##."),
        phases=((0, 1, 2, 3),),
    ),
    "dilated": Axis(
        kernel_size=3,
        dilation=2,
        length=5,
        sources=((-2, 0, 2), (-1, 1, 3), (0, 2, 4), (1, 3, 5), (2, 4, 6)),
        on_map=(".##", ".##", "###", "##.", "##."),
        phases=((0, 2, 4), (1, 3)),
    ),
    "unequal_phases": Axis(
        kernel_size=3,
        dilation=3,
        length=7,
        sources=((-3, 0, 3), (-2, 1, 4), (-1, 2, 5), (0, 3, 6), (1, 4, 7), (2, 5, 8), (3, 6, 9)),
        on_map=(".##", ".##", ".##", "###", "##.", "##.", "##."),
        phases=((0, 3, 6), (1, 4), (2, 5)),
    ),
    "window_wider_than_the_map": Axis(
        kernel_size=5,
        dilation=2,
        length=3,
        sources=((-4, -2, 0, 2, 4), (-3, -1, 1, 3, 5), (-2, 0, 2, 4, 6)),
        on_map=("..##.", "..#..", ".##.."),
        phases=((0, 2), (1,)),
    ),
    "dilation_of_the_map": Axis(
        kernel_size=3,
        dilation=3,
        length=3,
        sources=((-3, 0, 3), (-2, 1, 4), (-1, 2, 5)),
        on_map=(".#.", ".#.", ".#."),
        phases=((0,), (1,), (2,)),
    ),
    "dilation_beyond_the_map": Axis(
        kernel_size=3,
        dilation=7,
        length=3,
        sources=((-7, 0, 7), (-6, 1, 8), (-5, 2, 9)),
        on_map=(".#.", ".#.", ".#."),
        phases=((0,), (1,), (2,)),
    ),
    "one_pixel": Axis(
        kernel_size=5,
        dilation=1,
        length=1,
        sources=((-2, -1, 0, 1, 2),),
        on_map=("..#..",),
        phases=((0,),),
    ),
}


class FreeAxis(NamedTuple):
    """One head's windows on one axis, where they are not centred or not at the border.

    size, before: taps that there are, and how many of them lie before the query.
    sources: for each query the coordinate that each tap reads, on the map or off it.
    """

    kernel_size: int
    dilation: int
    length: int
    shifted: bool
    is_causal: bool
    size: int
    before: int
    sources: tuple[tuple[int, ...], ...]


FREE_AXES = {
    "shifted": FreeAxis(
        *(3, 1, 5, True, False, 3, 1),
        sources=((0, 1, 2), (0, 1, 2), (1, 2, 3), (2, 3, 4), (2, 3, 4)),
    ),
    "shifted_5": FreeAxis(
        *(5, 1, 6, True, False, 5, 2),
        sources=(*(((0, 1, 2, 3, 4),) * 3), *(((1, 2, 3, 4, 5),) * 3)),
    ),
    "shifted_phases": FreeAxis(
        *(3, 2, 7, True, False, 3, 1),
        sources=((0, 2, 4), (1, 3, 5), (0, 2, 4), (1, 3, 5), (2, 4, 6), (1, 3, 5), (2, 4, 6)),
    ),
    "shifted_even": FreeAxis(
        *(4, 1, 6, True, False, 4, 2),
        sources=((0, 1, 2, 3),) * 3 + ((1, 2, 3, 4),) + ((2, 3, 4, 5),) * 2,
    ),
    "shifted_2": FreeAxis(*(2, 1, 3, True, False, 2, 1), sources=((0, 1), (0, 1), (1, 2))),
    "shifted_short": FreeAxis(
        *(4, 2, 5, True, False, 4, 2),
        sources=((0, 2, 4, 6), (1, 3, 5, 7), (0, 2, 4, 6), (1, 3, 5, 7), (0, 2, 4, 6)),
    ),
    "causal": FreeAxis(
        *(5, 1, 4, False, True, 3, 2),
        sources=((-2, -1, 0), (-1, 0, 1), (0, 1, 2), (1, 2, 3)),
    ),
    "causal_dilated": FreeAxis(
        *(3, 2, 4, False, True, 2, 1), sources=((-2, 0), (-1, 1), (0, 2), (1, 3))
    ),
    "causal_shifted": FreeAxis(
        *(3, 1, 4, True, True, 3, 2),
        sources=((-2, -1, 0), (-1, 0, 1), (0, 1, 2), (1, 2, 3)),
    ),
}

# kernel_size -> taps on either side of the centre, and for each tap the one that looks back.
REACH = {1: 0, 3: 1, 5: 2}
MIRRORED = {1: (0,), 3: (2, 1, 0), 5: (4, 3, 2, 1, 0)}

# Rows and columns of taps -> index of each tap in the bias of a head.
TAP_INDEX = {
    (1, 1): ((0,),),
    (3, 3): ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    (3, 5): ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9), (10, 11, 12, 13, 14)),
    (5, 1): ((0,), (1,), (2,), (3,), (4,)),
}

# (tap on the map, masked) -> whether the tap counts.
TAP_COUNTS = {
    (True, False): True,
    (True, True): True,
    (False, False): True,
    (False, True): False,
}
