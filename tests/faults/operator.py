"""The operator on the CPU: forks, workers of a DataLoader, shutdown, and memory."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Set
from pathlib import Path

from tests.faults.counts import Counts

# What every program below begins with; maps large enough for the pool to be used.
START = """
    import os, random, sys, threading, time
    import torch
    import sdwa

    def call(height=40, width=40, heads=3, dim=16, kernel=3, dilation=(1, 2, 3), backward=True):
        query, key, value = (
            torch.randn(1, height, width, heads, dim, requires_grad=backward) for _ in range(3)
        )
        out = sdwa.sliding_dilated_window_attention(
            query, key, value, kernel, dilation, backend="cpu"
        )
        if backward:
            out.sum().backward()
        return out.detach()
"""

# One thread in the forked process, as a DataLoader's workers have: more hang, in PyTorch's own
# operators too, as GNU's OpenMP does not live on there.
FORK = """
    torch.set_num_threads(2)
    {before}
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    call()
    sys.exit(os.waitstatus_to_exitcode(status))
"""

WORKERS = """
    torch.set_num_threads(2)
    call()

    class Maps(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            torch.manual_seed(index)
            return call(backward=False)[0]

    if __name__ == "__main__":
        loader = torch.utils.data.DataLoader(
            Maps(), batch_size=4, num_workers=2, multiprocessing_context="{method}"
        )
        expected = torch.stack([Maps()[index] for index in range(64)])
        found = torch.cat(list(loader))
        sys.exit(0 if torch.equal(found, expected) else "the workers computed something else")
"""

SHUTDOWN = """
    torch.set_num_threads(2)
    ends = time.monotonic() + {seconds}

    def work():
        while {daemon} or time.monotonic() < ends:
            call(64, 64)

    for _ in range(4):
        threading.Thread(target=work, daemon={daemon}).start()
    time.sleep({seconds})
    {end}
"""

# Up to Python 3.13 the interpreter ends daemon threads within C++, and so aborts: also where they
# are in PyTorch's own operators.
ENDS = {
    "pass": (False, {0}),
    "sys.exit(0)": (True, {0, -signal.SIGABRT}),
    "os._exit(0)": (True, {0}),
    "os.kill(os.getpid(), 15); time.sleep(9)": (True, {-signal.SIGTERM}),
}

MEMORY = """
    torch.set_num_threads(2)
    rng = random.Random({seed})

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    marks = []
    for number in range(10000):
        heads = rng.randint(1, 6)
        call(
            rng.randint(1, 40), rng.randint(1, 40), heads, rng.choice([1, 7, 16, 24, 60]),
            rng.choice([1, 3, 5, 7]), [rng.randint(1, 12) for _ in range(heads)],
            backward=rng.random() < 0.5,
        )
        if number % 1000 == 999:
            marks.append(resident() >> 20)
    print(marks)
    grown = sorted(marks[7:])[1] - sorted(marks[2:5])[1]
    sys.exit(0 if grown <= 8 else f"5,000 calls took {{grown}} MB more: {{marks}}")
"""


def everything(folder: Path, counts: Counts, rng: random.Random) -> None:
    """All of them."""
    for before in ("call()", "torch.ones(2000, 2000).exp().sum()", "pass"):
        with counts.trying("fork after use of the pool", before):
            succeeds(FORK.format(before=before), folder)
    for method in ("fork", "forkserver", "spawn"):
        with counts.trying("DataLoader whose workers call the operator", method):
            succeeds(WORKERS.format(method=method), folder)
    for end, (daemon, legal) in ENDS.items():
        for _ in range(4):
            seconds = rng.uniform(0, 0.5)
            with counts.trying(
                "end of the interpreter while threads call", f"{end}, {seconds:.3f}"
            ):
                program = SHUTDOWN.format(seconds=seconds, end=end, daemon=daemon)
                succeeds(program, folder, legal)
    with counts.trying("10,000 calls of changing shapes in flat memory"):
        succeeds(MEMORY.format(seed=rng.randrange(10**6)), folder, seconds=300)


def succeeds(
    program: str, folder: Path, legal: Set[int] = frozenset((0,)), seconds: float = 60
) -> None:
    """Asserts that a program ends as it should, in time, and has no complaints."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(START) + textwrap.dedent(program))
    process = subprocess.Popen(
        [sys.executable, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "LD_PRELOAD": ""},
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError(f"it had not ended after {seconds} s") from None
    assert process.returncode in legal, f"status {process.returncode}: {said[-2000:]}"
    assert not said or process.returncode == -signal.SIGABRT, said[-2000:]
