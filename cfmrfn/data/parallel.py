"""The same function over many items in several processes, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from tqdm import tqdm

from cfmrfn.process.signals import end_with_main_process

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    Args:
        function: sent to the processes by pickle, and so are items and results.
        items: its arguments.
        workers: number of processes; 1 or fewer: all in this one.
        desc, unit: what the progress bar says.
        progress: show the progress bar.
    """
    with ExitStack() as stack:
        if workers > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, initializer=end_with_main_process)
            )
            results = pool.map(function, items, chunksize=16)
        else:
            results = map(function, items)
        bar = tqdm(results, total=len(items), desc=desc, unit=unit, disable=not progress)
        return list(bar)
