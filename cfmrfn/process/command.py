"""How a command-line tool runs: what a user can mend is one line, and signals end it in order."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from cfmrfn.errors import ANY_NAME, USER_ERRORS, OutOfMemory, printable, text_of
from cfmrfn.process import heap, signals


def run(main: Callable[[], object]) -> None:
    """Runs a command-line tool: a user's error becomes one line on stderr and exit status 2.

    So does an error of the file system, such as a full disk or a folder that may not be written.
    Ctrl-C ends with the customary status 130, SIGTERM with 143 and SIGHUP with 129, all after what
    was begun on disk is removed; a reader of the output that has seen enough, such as `head`, with
    141. Of several processes under `torchrun` the first one that fails tells it;
    the others, which fail with it, end without a word.

    The process keeps the memory that it frees, see `heap.keep_pages`. What is written to an output
    that the user has closed is lost, as with `> /dev/null`.
    """
    _open_closed_streams()
    heap.keep_pages()
    signals.start_resource_tracker()
    with signals.terminal_may_go(), signals.workers_end():
        _run(main)


def _open_closed_streams() -> None:
    """Opens the null device for streams that are closed, as by `2>&-`: Python has None there.

    It gets the number of the stream. Otherwise a file that is opened later would, and with it what
    libraries write to stderr.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8", errors=ANY_NAME)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _run(main: Callable[[], object]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=ANY_NAME)
    try:
        try:
            with signals.signals_raise():
                main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except signals.Signalled as signalled:
        sys.exit(128 + signalled.number)
    except BrokenPipeError:
        # Python flushes once more at its end, where the error would be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        message = _for_user(error)
        if not _is_first_to_fail():
            sys.exit(2)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def memory_options(options: str) -> Iterator[None]:
    """Within it, and in a function that it decorates, lack of memory is an `OutOfMemory`.

    Args:
        options: what lowers the memory that is needed, as in "lower --batch-size".
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_lack_of_memory(error):
            raise
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
        amount = f", {asked[1]} more were asked for" if asked else ""
        raise OutOfMemory(f"out of memory{amount}: {options}") from error


def _for_user(error: Exception) -> str | None:
    """One line for an error that a user can mend, or None."""
    text = str(error)
    if isinstance(error, USER_ERRORS):
        message = text_of(error)
    elif isinstance(error, OSError):
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        message = f"{where}{error.strerror or error}"
    elif _is_lack_of_memory(error):
        message = "out of memory: ask for less at a time, such as smaller batches"
    elif isinstance(error, BrokenProcessPool) or re.search(
        r"DataLoader worker .* (killed by signal|exited unexpectedly)", text
    ):
        message = (
            "a process that makes or decodes images was ended by the system, likely for lack of "
            "memory, or of shared memory in a container (docker run --shm-size): lower --workers"
        )
    elif isinstance(error, NotImplementedError) and "MPS" in text:
        message = (
            f"{text.partition('. ')[0]}; take --device cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1"
        )
    elif isinstance(error, RuntimeError) and _is_lost_connection(error):
        message = (
            "the connection to another process of the run was lost; its own message, or the "
            "system's, says why. Go on with --resume"
        )
    else:
        return None
    # PyTorch's advice here is to load the file in a way that lets it run code
    message = re.sub(
        r"Weights only load failed.*",
        "it holds more than weights and plain values, and such a file can run code",
        message,
        flags=re.DOTALL,
    )
    return " ".join(printable(message).split())


def _is_lack_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # of Apple's GPUs, of a GPU that other processes filled, and of the CPU
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/transport/" in str(error)


def _is_first_to_fail() -> bool:
    """Whether no other process of this run has failed before; the question is asked once."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    try:
        # where the process that keeps the store has ended, a store would try for long and loudly
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection(address, timeout=5).close()
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=5)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"cfmrfn failed, {attempt}", 1) == 1
    except (RuntimeError, ValueError, LookupError, OSError):
        return True  # better told twice than not at all
