"""matplotlib can be imported, whatever the environment variable MPLBACKEND names."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def allow_missing() -> None:
    """Imports matplotlib where MPLBACKEND is set, also if it names a backend that is not installed.

    matplotlib would then fail to be imported, as in a terminal of Jupyter, whose kernel may be of
    another environment. No picture of `cfmrfn` needs a backend. One that is installed is taken as
    matplotlib takes it, and the variable stays as it is.
    """
    asked = os.environ.get("MPLBACKEND")
    if not asked or "matplotlib" in sys.modules:
        return
    del os.environ["MPLBACKEND"]
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = asked
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = asked
