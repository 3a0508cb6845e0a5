"""What reaches the user of a tool: one line that says what to do, and names that stay whole."""

import io
import pickle
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
import torch.distributed as dist

from cfmrfn import analyze, complexity, evaluate, predict, sweep, train
from cfmrfn.errors import ConfigError, OutOfMemory, brief, first_of
from cfmrfn.process import command

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.69 GiB of "
    "which 1.12 GiB is free. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
MPS = "MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 256.00 MB on private"
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.fixture
def told(capsys):
    """Run a tool that raises `error`; its exit status and what it says on stderr."""

    def run(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as stop:
            command.run(main)
        return stop.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (torch.OutOfMemoryError(CUDA), ", 2.50 GiB more were asked for"),
        (RuntimeError(MPS), ", 256.00 MB more were asked for"),
        (RuntimeError(CPU), ""),
        (MemoryError(), ""),
    ],
)
def test_lack_of_memory_names_the_options_that_lower_it(error, amount, told):
    @command.memory_options("lower --batch-size")
    def compute():
        raise error

    with pytest.raises(OutOfMemory) as caught:
        compute()
    line = f"error: out of memory{amount}: lower --batch-size\n"
    assert told(caught.value) == (2, line)
    status, line = told(error)
    assert status == 2
    assert line.count("\n") == 1
    assert "smaller batches" in line


@pytest.mark.parametrize(
    ("tool", "reads_options", "names"),
    [
        (train, "parse_config", ("--batch-size", "--image-size", "--accumulate", "--precision")),
        (sweep, "parse", ("--batch-size", "--image-size", "--accumulate", "--precision")),
        (evaluate, "parse", ("--batch-size", "--precision")),
        (predict, "parse", ("--device cpu",)),
        (analyze, "parse", ("--batch-size", "--device cpu")),
        (complexity, "parse", ("--batch-size", "--image-size")),
    ],
)
def test_each_tool_names_its_options(tool, reads_options, names, monkeypatch, told):
    def lack(*_, **__):
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(tool, reads_options, lack)
    with pytest.raises(OutOfMemory) as caught:
        tool.main([])
    _, line = told(caught.value)
    for name in names:
        assert name in line


def test_ctrl_c_is_the_customary_status_without_a_word(told):
    assert told(KeyboardInterrupt()) == (130, "")


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes") as caught, command.memory_options("lower it"):
        raise RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        command.run(lambda: (_ for _ in ()).throw(caught.value))


def test_advice_and_codes_of_others_do_not_reach_the_user(tmp_path, told):
    path = tmp_path / "weights.pt"
    torch.save({"a": pickle.Unpickler}, path)
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        status, line = told(ConfigError(f"cannot load {path}: {error}"))
    assert status == 2
    assert line.startswith(f"error: cannot load {path}: it holds more than weights")
    assert "weights_only" not in line
    red = ConfigError("no \x1b[31mred\x1b[0m,\nno bell\a")
    assert told(red) == (2, "error: no red, no bell\\x07\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"),
            "lower --workers",
        ),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "lower --workers"),
        (BrokenProcessPool("A process in the process pool was terminated"), "lower --workers"),
        (OSError(28, "No space left on device", b"a.png"), "error: a.png: No space left"),
        (
            NotImplementedError(
                "The operator 'aten::x' is not currently implemented for the MPS device. If you"
            ),
            "aten::x' is not currently implemented for the MPS device; take --device cpu",
        ),
        (dist.DistBackendError("NCCL error: remote process exited"), "connection to another proc"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"), "--resume"),
    ],
)
def test_errors_of_the_system_are_one_line(error, message, told):
    status, line = told(error)
    assert status == 2
    assert message in line
    assert line.count("\n") == 1


def test_values_of_any_size_are_told_in_short():
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    for value in (nested, "x" * 10**6, {"é": nested}):
        assert len(brief(value)) < 1000
    assert brief("\xe9\n") == "'\\xe9\\n'"
    assert first_of(["a", "b"], 2) == ["a", "b"]
    assert first_of(["a", "b", "c"], 1, rest=", in b.json") == ["a", "and 2 more, in b.json"]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "bl\xe9 \u6f22 ".encode() + b"\xe9"), ("ascii", b"bl\\xe9 \\u6f22 \xe9")],
)
def test_any_name_can_be_printed(encoding, expected, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    command.run(lambda: print("bl\xe9 \u6f22 \udce9", end=""))
    sys.stdout.flush()
    assert raw.getvalue() == expected
