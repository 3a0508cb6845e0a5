"""How a tool ends when it is asked to: by Ctrl-C, a signal, or a terminal that is closed.

And how its workers end when it was not asked, but killed.
"""

from __future__ import annotations

import _thread
import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.util import get_temp_dir
from types import FrameType
from typing import Any, TextIO

_SECONDS_UNTIL_AGAIN = 0.01


class Signalled(BaseException):
    """A signal asks this process to end; `SystemExit` means other things to those who catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise an exception, as Ctrl-C does, so that what was begun on
    disk is removed.

    Not of several processes: each may wait for another where Python cannot act, and must end.
    """
    own = os.getpid()
    before = {}

    def leave(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once
        if os.getpid() != own:  # a process that helps this one
            os.kill(os.getpid(), number)
        raise Signalled(number)

    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and int(os.environ.get("WORLD_SIZE", 1)) == 1):
        yield
        return
    for name in ("SIGTERM", "SIGHUP"):  # Windows has not both
        number = getattr(signal, name, None)
        # nohup has SIGHUP ignored, which stays
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, leave)
    try:
        with _signals_repeat(leave):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_repeat(leave: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within it a signal is repeated whose exception Python loses, as it does in `__del__`.

    At the end of it the exception is raised.

    Args:
        leave: what raises `Signalled`.
    """
    own = os.getpid()
    within = True
    lost: Signalled | KeyboardInterrupt | None = None
    report = sys.unraisablehook

    def repeat(what: sys.UnraisableHookArgs) -> None:
        nonlocal lost
        if isinstance(what.exc_value, Signalled):
            number = what.exc_value.number
            signal.signal(number, leave)
        elif isinstance(what.exc_value, KeyboardInterrupt):
            number = signal.SIGINT
        else:
            report(what)
            return
        lost = what.exc_value
        # this may have interrupted whoever holds the lock that threads of `threading` start with
        _thread.start_new_thread(send_again, (number,))

    def send_again(number: int) -> None:
        time.sleep(_SECONDS_UNTIL_AGAIN)
        if within:
            os.kill(own, number)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        within = False
        sys.unraisablehook = report
    if lost is not None:
        raise lost


class StopSignal:
    """Within it, Ctrl-C, SIGTERM and SIGHUP are remembered in `asked`; a second one acts at once.

    SIGHUP is what a terminal that is closed sends, as when a connection to another machine is lost.
    In a thread beside the main one, which signals do not come to, none is.
    """

    def __enter__(self) -> StopSignal:
        self.asked = False
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        known = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
        # Windows has no SIGHUP, and nohup has it ignored, which stays
        numbers = [s for s in known if s is not None and signal.getsignal(s) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        for each, handler in self._before.items():
            signal.signal(each, handler)


class _Terminal(io.FileIO):
    """A terminal, to write to; once it is closed, what is written is lost, and that is no error."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(content)


@contextmanager
def terminal_may_go() -> Iterator[None]:
    """Within it a tool outlives its terminal, and can save what it has when SIGHUP comes."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_outliving, before)
    try:
        yield
    finally:
        for stream in {sys.stdout, sys.stderr}.difference(before):
            stream.flush()
        sys.stdout, sys.stderr = before


def _outliving(stream: TextIO) -> TextIO:
    if not (isinstance(stream, io.TextIOWrapper) and stream.isatty()):
        return stream
    raw = _Terminal(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True
    )


def start_resource_tracker() -> None:
    """Starts Python's process that cleans up after others, for SIGHUP to leave it alone.

    It ignores Ctrl-C and SIGTERM. Were it gone, Python would warn where it is needed again.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_wait() -> Iterator[None]:
    """In processes that are started within it, Ctrl-C, SIGTERM and SIGHUP wait for `init_worker`.

    One that comes earlier would end them, and the tool with an error. In this process its thread
    does not see them within it; others may, for Python to act upon.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    start_resource_tracker()  # which would let them through
    with suppress(OSError):  # what needs it says so
        get_temp_dir()  # theirs too, which this process removes: they are ended before they could
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(_: int = 0) -> None:
    """Makes a worker outlive what reaches all processes of a tool, and end with the main one.

    Ctrl-C, a closed terminal, schedulers and service managers signal every process; the main one
    then finishes its step, for which it needs its workers, saves, and ends them.
    """
    for name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Only `sigwaitinfo` tells who sent a signal. Without it PyTorch's handler stays, which ends the
    # worker without a word where the main process asks for it, and with an error else.
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_asks, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_main_process()  # whose thread leaves signals alone, too


def _end_when_main_asks() -> None:
    main = multiprocessing.parent_process()
    assert main is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    # as PyTorch's handler does: another status would be taken for a worker that failed
    os._exit(0)


@contextmanager
def workers_end() -> Iterator[None]:
    """Ends workers that are left behind it, before Python's own exit asks each of them once.

    That is not enough: of two signals of one number that reach a process together it sees the first
    alone, and may take the second, of the main process, for that of all processes.
    """
    try:
        yield
    finally:
        for worker in multiprocessing.active_children():
            while worker.daemon and worker.is_alive():
                worker.terminate()
                worker.join(0.1)


def end_with_main_process() -> None:
    """Makes a worker end once the main process is gone, also where that was killed.

    Workers of `concurrent.futures` would wait for work for good. Those of PyTorch look whether they
    still have the same parent; that of "forkserver", the default since Python 3.14, stays.
    """
    threading.Thread(target=_end_after_main, daemon=True).start()


def _end_after_main() -> None:
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os._exit(1)
