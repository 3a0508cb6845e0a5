"""The same function over many items in several processes, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from tqdm import tqdm

from cfmrfn.process.signals import init_worker, signals_wait

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 4  # items sent at a time; once sent they are done, also after a signal


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    desc: str,
    unit: str,
    progress: bool,
) -> list[Result]:
    """`[function(item) for item in items]`, over several processes.

    After an error, or a signal, what is not begun is left undone. A signal to all processes is the
    main one's to act upon: the others end with it.

    Args:
        function: sent to the processes by pickle, and so are items and results.
        items: its arguments.
        workers: number of processes; 1 or fewer: all in this one.
        desc, unit: what the progress bar says.
        progress: show the progress bar.
    """
    with ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers, initializer=init_worker))
            stack.callback(pool.shutdown, cancel_futures=True)
            with signals_wait():
                results = pool.map(function, items, chunksize=_CHUNK)
        else:
            results = map(function, items)
        bar = tqdm(results, total=len(items), desc=desc, unit=unit, disable=not progress)
        return list(bar)
