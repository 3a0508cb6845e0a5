"""Errors that a user can mend: each message names what came and what is legal."""

from __future__ import annotations

import sys
from collections.abc import Callable


class ConfigError(ValueError):
    """A configuration value, or a command-line option, is not legal."""


class CheckpointError(ValueError):
    """A checkpoint or run folder cannot be written, read, or continued as asked."""


class DataError(ValueError):
    """A data set, or what is asked of it, is not legal."""


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or its gradient is not finite."""


USER_ERRORS = (ConfigError, CheckpointError, DataError, TrainingError)


def run(main: Callable[[], object]) -> None:
    """Runs a command-line tool: a user's error becomes one line on stderr and exit status 2.

    So does an error of the file system, such as a full disk or a folder that may not be written.
    Ctrl-C ends with the customary status 130.
    """
    try:
        main()
    except USER_ERRORS as error:
        # an error in a loader's worker arrives with the worker's traceback in front of it
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
