"""All tools in one: `cfmrfn train ...`, or `python -m cfmrfn train ...`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cfmrfn import errors
from cfmrfn.process import command

# Name -> module and what it is for. `python -m cfmrfn.NAME` is the same tool.
TOOLS = {
    "train": ("cfmrfn.train", "train a network, or go on with a run"),
    "evaluate": (
        "cfmrfn.evaluate",
        "accuracies of checkpoints on a data set, with intervals",
    ),
    "predict": ("cfmrfn.predict", "expressions of the faces in pictures and videos"),
    "demo": ("cfmrfn.demo.__main__", "a local page for pictures and the camera"),
    "analyze": ("cfmrfn.analyze", "what a checkpoint looks at, as a page and pictures"),
    "export": ("cfmrfn.export", "ONNX, torch.export, safetensors for timm, and a model card"),
    "data": ("cfmrfn.data.__main__", "verify or divide a data set, draw faces, prepare FERPlus"),
    "landmarks": (
        "cfmrfn.landmarks.__main__",
        "train the landmark backbone on drawn faces, and measure it",
    ),
    "complexity": ("cfmrfn.complexity", "parameters, operations and memory of a network"),
    "sweep": ("cfmrfn.sweep", "the paper's tables, by training every row of one"),
}


def usage(prog: str) -> str:
    """The tools, one per line."""
    width = max(map(len, TOOLS))
    return "\n".join(
        [
            f"usage: {prog} TOOL [OPTIONS]\n",
            "Facial expressions with CFMRFN: train networks, and use them.\n",
            *(f"  {name:{width}}  {purpose}" for name, (_, purpose) in TOOLS.items()),
            f"\n{prog} TOOL --help lists the options of a tool.",
        ]
    )


def main(args: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command line.

    Raises:
        ConfigError: there is no such tool.
    """
    args = sys.argv[1:] if args is None else args
    prog = prog or _prog()
    if not args or args[0] in ("-h", "--help"):
        print(usage(prog))
        return
    name, *rest = args
    if name not in TOOLS:
        close = difflib.get_close_matches(name, TOOLS, 1)
        hint = f"; perhaps {close[0]}" if close else ""
        raise errors.ConfigError(f"tool must be one of {', '.join(TOOLS)}; got {name!r}{hint}")
    # a tool is imported when it is asked for: some need seconds for it
    importlib.import_module(TOOLS[name][0]).main(rest, prog=f"{prog} {name}")


def _prog() -> str:
    return "python -m cfmrfn" if Path(sys.argv[0]).name == "__main__.py" else "cfmrfn"


def run() -> None:
    """What the console script `cfmrfn` calls."""
    command.run(main)


if __name__ == "__main__":
    run()
