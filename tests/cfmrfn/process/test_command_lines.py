"""`cfmrfn TOOL`, `python -m cfmrfn TOOL` and `python -m cfmrfn.TOOL` are the same tool."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cfmrfn import __main__ as tools
from cfmrfn.process import command

ROOT = Path(__file__).parents[3]


def test_without_a_tool_all_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cfmrfn"])
    runpy.run_path(str(ROOT / "cfmrfn" / "__main__.py"), run_name="__main__")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "usage: python -m cfmrfn TOOL [OPTIONS]"
    for name in tools.TOOLS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_every_module_with_a_command_line_is_listed():
    package = ROOT / "cfmrfn"
    modules = [*package.glob("*.py"), *package.glob("*/__main__.py")]
    runnable = {
        (path.parent.name if path.stem == "__main__" else path.stem)
        for path in modules
        if '__name__ == "__main__"' in path.read_text("utf-8")
    }
    assert set(tools.TOOLS) == runnable - {"cfmrfn"}


@pytest.mark.parametrize("name", tools.TOOLS)
def test_help_names_the_program_as_it_was_called(name, capsys):
    def usage(run):
        with pytest.raises(SystemExit) as stop:
            run()
        assert stop.value.code in (0, None)
        return capsys.readouterr().out.splitlines()[0]

    tool = importlib.import_module(tools.TOOLS[name][0])
    assert usage(lambda: tool.main(["--help"])).startswith(f"usage: python -m cfmrfn.{name} ")
    by_script = usage(lambda: tools.main([name, "--help"], prog="cfmrfn"))
    assert by_script.startswith(f"usage: cfmrfn {name} ")


@pytest.mark.parametrize(
    ("name", "subcommand", "expected"),
    [("data", "draw", "[ROOT]"), ("landmarks", "evaluate", "[FILE]")],
)
def test_help_shows_what_may_be_left_out(name, subcommand, expected, capsys):
    with pytest.raises(SystemExit):
        tools.main([name, subcommand, "--help"])
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith(f" OPTIONS] {expected}")


def test_a_tool_gets_its_arguments_and_its_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cfmrfn", "predict", "nowhere.pt", "a.jpg"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "cfmrfn" / "__main__.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: there is no checkpoint nowhere.pt\n"


def test_an_unknown_tool_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        command.run(lambda: tools.main(["evaluat"], prog="cfmrfn"))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "got 'evaluat'; perhaps evaluate" in error


def test_the_console_script_is_this_module(monkeypatch, capsys):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["cfmrfn"].partition(":")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cfmrfn", "--help"])
    getattr(importlib.import_module(module), function)()
    assert capsys.readouterr().out.startswith("usage: cfmrfn TOOL [OPTIONS]")


@pytest.mark.skipif(sys.platform == "win32", reason="no head there")
def test_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "from cfmrfn.process import command; command.run(lambda: [print(i) for i in range(100000)])"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"0\n"
    writer.stdout.close()
    with writer.stderr as errors_printed:
        assert errors_printed.read() == b""
    assert writer.wait() == 141


@pytest.mark.skipif(sys.platform == "win32", reason="no sh there")
@pytest.mark.parametrize(
    ("closed", "name", "args"),
    [
        (">&-", "predict", ["Image/aligned", "--csv"]),
        ("2>&-", "train", ["--epochs", "1", "--output"]),
        ("<&- >&- 2>&-", "data", ["draw", "--train", "7", "--test", "7", "--size", "32"]),
    ],
)
def test_a_tool_works_where_its_outputs_are_closed(closed, name, args, options, faces, tmp_path):
    made = tmp_path / "made"
    tool = [sys.executable, "-m", f"cfmrfn.{name}", *(options if name == "train" else []), *args]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *tool, str(made)],
        cwd=faces,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert made.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no sh there")
def test_no_file_gets_the_number_of_a_closed_output(tmp_path):
    code = (
        "from cfmrfn.process import command; command.run(lambda: print(open('made', 'w').fileno()))"
    )
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- 2>&-', "sh", sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert int(done.stdout) > 2
