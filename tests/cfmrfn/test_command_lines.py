"""`cfmrfn TOOL`, `python -m cfmrfn TOOL` and `python -m cfmrfn.TOOL` are the same tool."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from cfmrfn import __main__ as tools
from cfmrfn import errors

ROOT = Path(__file__).parents[2]


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


def test_a_tool_gets_its_arguments_and_its_status(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cfmrfn", "predict", "nowhere.pt", "a.jpg"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "cfmrfn" / "__main__.py"), run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: there is no checkpoint nowhere.pt\n"


def test_an_unknown_tool_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: tools.main(["evaluat"], prog="cfmrfn"))
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
    code = "from cfmrfn import errors; errors.run(lambda: [print(i) for i in range(100000)])"
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"0\n"
    writer.stdout.close()
    with writer.stderr as errors_printed:
        assert errors_printed.read() == b""
    assert writer.wait() == 141
