"""Tools keep the memory that they free, unless the user has chosen otherwise."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cfmrfn.process import heap

# Page faults of a tool, and of a process that is forked from it, that allocate and free 64 MiB
PROGRAM = """
import ctypes, os, resource
from cfmrfn.process import command

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 64 << 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
        ctypes.memset(block, 1, size)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def main():
    faults()
    print(faults(), flush=True)
    if os.fork() == 0:
        faults()
        print(faults(), flush=True)
        os._exit(0)
    os.wait()

command.run(main)
"""
VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
@pytest.mark.parametrize("chosen", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=["", "chosen"])
def test_freed_memory_is_used_again(chosen):
    others = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLES)}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**others, **chosen},
    )
    # as many as the 10 blocks have huge pages of 2 MiB, or more
    faults = [int(line) >= 10 * 64 / 2 for line in result.stdout.split()]
    assert faults == [bool(chosen)] * 2


@pytest.mark.parametrize(
    ("environment", "exports", "most", "asked"),
    [
        ({}, "glibc", 2**31, [(-1, -1), (-3, 2**30)]),
        ({}, "glibc", 2**25, [(-1, -1), (-3, 2**30), (-3, 2**25)]),  # glibc before 2.35
        ({}, "musl", 2**31, []),
        ({"MALLOC_ARENA_MAX": "2"}, "glibc", 2**31, []),
        ({"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"}, "glibc", 2**31, []),
        ({"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=on"}, "glibc", 2**31, [(-1, -1), (-3, 2**30)]),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, "glibc", 2**31, []),
    ],
)
def test_what_is_asked_of_the_c_library(environment, exports, most, asked, monkeypatch):
    calls = []

    def mallopt(parameter, value):
        calls.append((parameter, value))
        return int(value <= most)

    libc = SimpleNamespace(mallopt=mallopt)
    if exports == "glibc":
        libc.gnu_get_libc_version = None
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    monkeypatch.setattr(sys, "platform", "linux")
    assert heap.keep_pages() == bool(asked)
    assert calls == asked


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not heap.keep_pages()
