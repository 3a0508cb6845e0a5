"""Programs in several processes, as under torchrun, without importing PyTorch in each of them."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

import cfmrfn

# of torchrun, where no other number is given
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cfmrfn.__file__).parents[1])}


def torchrun(args, program=("-m", "cfmrfn.train")):
    """`program` with `args` in two processes; what came of it."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    return subprocess.run(
        [*launcher, "2", *program, *args],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **ENVIRONMENT},
    )


def forked(args, program=("-m", "cfmrfn.train")):
    """The same as `torchrun` in a third of the time.

    Each process is forked from one that has imported PyTorch. Like torchrun this process keeps the
    store by which they meet, and ends the other one when one fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cfmrfn.evaluate", "cfmrfn.train"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        **os.environ,
        **ENVIRONMENT,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in ("0", "1"):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            given = (program, [str(arg) for arg in args], own, Path(folder) / rank)
            processes.append(context.Process(target=_execute, args=given))
        for process in processes:
            process.start()
        running = {process.sentinel: process for process in processes}
        while running:
            ended = wait(running, timeout=300)
            failed = [s for s in ended if running[s].exitcode] or not ended
            for sentinel in ended:
                running.pop(sentinel).join()
            for process in running.values() if failed else ():
                process.terminate()
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.close()
        said = [
            "".join(Path(folder, f"{rank}.{stream}").read_text("utf-8") for rank in (0, 1))
            for stream in ("out", "err")
        ]
    return subprocess.CompletedProcess(args, next(filter(None, codes), 0), *said)


def _execute(program, args, environment, output):
    os.environ.clear()
    os.environ.update(environment)
    for stream, end in ((sys.stdout, "out"), (sys.stderr, "err")):
        target = os.open(f"{output}.{end}", os.O_WRONLY | os.O_CREAT)
        os.dup2(target, stream.fileno())
    # the process that this one is forked from may have read another number
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [program[-1], *args]
    if program[0] == "-m":
        sys.modules.pop(program[1], None)
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program[0], run_name="__main__")
