"""Draws windows.svg, the README's picture: one query and its windows at dilations 1, 2 and 3.

python docs/windows.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

MAP = 7
QUERY = (2, 3)  # row, column
COLOURS = {1: "#4c9f70", 2: "#3b7dd8", 3: "#b8609a"}
HEADS = {1: "heads 1-2", 2: "heads 3-5", 3: "heads 6-8"}


def draw_map(axes, dilation: int) -> None:
    taps = [
        (QUERY[0] + dilation * dy, QUERY[1] + dilation * dx)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    for row in range(-1, MAP):
        for column in range(MAP):
            on_map = row >= 0
            if not on_map and (row, column) not in taps:
                continue
            colour = COLOURS[dilation] if (row, column) in taps else "#f2f2f2"
            axes.add_patch(
                Rectangle(
                    (column + 0.05, row + 0.05),
                    0.9,
                    0.9,
                    facecolor=colour if on_map else "white",
                    edgecolor=colour if not on_map else "none",
                    linestyle="--",
                )
            )
            if not on_map:
                axes.text(column + 0.5, row + 0.52, "0", ha="center", va="center", color=colour)
    axes.plot(QUERY[1] + 0.5, QUERY[0] + 0.5, "o", color="white", markersize=9)
    axes.plot(QUERY[1] + 0.5, QUERY[0] + 0.5, "o", color="#d1495b", markersize=6)
    axes.set(xlim=(0, MAP), ylim=(MAP, -1), aspect="equal")
    axes.set_title(f"{HEADS[dilation]}: dilation {dilation}", fontsize=11, color=COLOURS[dilation])
    axes.axis("off")


figure, maps = plt.subplots(1, 3, figsize=(8.4, 3.3))
for axes, dilation in zip(maps, COLOURS, strict=True):
    draw_map(axes, dilation)
figure.suptitle(
    "query (red) and the keys it attends to; a tap off the map counts as zero", fontsize=10, y=0.06
)
figure.tight_layout(rect=(0, 0.06, 1, 1))
plt.rcParams["svg.hashsalt"] = "windows"
figure.savefig(Path(__file__).with_name("windows.svg"), metadata={"Date": None})
