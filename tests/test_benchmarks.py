"""The tools themselves: records, comparison, report, and what they do with wrong input."""

import ctypes
import dataclasses
import itertools
import json
import subprocess
import sys
import tarfile
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

import sdwa
from benchmarks import (
    attention,
    compare,
    cpu,
    floor,
    latency,
    measure,
    peers,
    plots,
    report,
    supported,
    threads,
)
from benchmarks.gpu import profiling, small_set
from benchmarks.gpu.check import MOST_CHARACTERS, Check, Step, summary
from benchmarks.record import ROOT, Measurement, Record, Timing, UserError, start_record
from benchmarks.shapes import Shape
from tests.sdwa.cases import draw

CPU = torch.device("cpu")
SMALL = Shape("map6", 2, 6, 5, 3, 8, (1, 2, 3))
OTHER = dataclasses.replace(SMALL, name="map7", height=7, width=7)
BORDERS = {
    "map6": Shape("map6", 2, 6, 7, 3, 8, (2, 1, 2)),
    "row": Shape("row", 2, 1, 17, 2, 8, (1, 3), kernel_size=5),
    "narrow": Shape("narrow", 1, 5, 2, 2, 8, (1, 3)),
}
QUICK = attention.Options(seconds=0.001)


def test_floor_is_by_bytes_or_by_arithmetic():
    shape = dataclasses.replace(SMALL, kernel_size=5)
    tokens = 2 * 6 * 5 * 3
    rates = floor.Floor("avx2", bytes_per_second=1e6, multiply_adds_per_second={"float32": 1e7})
    least = rates.milliseconds(shape, "forward", torch.float32)
    assert least == pytest.approx(
        {"bytes": tokens * (4 * 8 + 1) * 4 / 1e3, "arithmetic": tokens * 2 * 25 * 8 / 1e4}
    )
    assert str(rates) == "avx2, copy 0.0 GB/s, float32 0 G multiply-adds/s"


@pytest.mark.parametrize("loop", ["baseline_float32", "baseline_float64"])
@pytest.mark.parametrize(("rounds", "sum_of_each"), [(1, 0.5), (2, 0.75), (3, 0.875)])
def test_loops_add_what_they_multiply(tmp_path, loop, rounds, sum_of_each):
    """x becomes x / 2 + 1 / 2, in each of the sums."""
    function = getattr(floor.compiled(tmp_path), loop)
    function.argtypes, function.restype = [ctypes.c_long], ctypes.c_double
    assert function(rounds) == 0.5 + floor.KEPT * sum_of_each


def test_loop_of_the_kernels_instruction_set_runs():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert floor.multiply_adds_rate(cpu.capability(), dtype, seconds=0.001) > 0


@pytest.mark.parametrize(("a_second", "rate"), [(7.0, 7 * 32), (1.0, 4 * 16)])
def test_bfloat16_is_multiplied_by_what_is_quickest(monkeypatch, a_second, rate):
    loops = SimpleNamespace(avx512_float32=4.0, avx512bf16_bfloat16=a_second)
    monkeypatch.setattr(floor, "compiled", lambda folder: loops)
    monkeypatch.setattr(floor, "_rate", lambda loop, seconds: loop)
    assert floor.multiply_adds_rate("avx512bf16", torch.bfloat16) == rate
    assert floor.multiply_adds_rate("avx512bf16", torch.float32) == 4 * 16


def test_missing_compiler_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UserError, match="needs a C compiler, and no-such-compiler is not there"):
        floor.compiled(tmp_path)


def small_record(shapes=(SMALL, OTHER), options=QUICK):
    record = start_record("attention", CPU)
    record.setting |= {
        "copy_bytes_per_second": 1e10,
        "matrix_operations_per_second": {"float32": 1e11},
    }
    chosen = [c for c in peers.contenders() if c.name in ("cpu", "reference", "global")]
    assert attention.run(record, shapes, chosen, torch.float32, CPU, options) == 0
    return record


@pytest.fixture(scope="module")
def record():
    return small_record()


def assert_computes(attend, shape):
    """That it computes the operator on a shape, and its gradients."""
    tensors = attention.draw(shape, torch.float32, CPU)
    exact = attention.exact_results(shape, "dilated", tensors)
    assert attention.check(shape, attend, tensors, exact, training=True) < 1e-5


def tool(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_measures_time_memory_and_error(record):
    found = record.find(("map6", "reference", "forward+backward", "float32"))
    assert 0 < found.timing.p20_ms <= found.timing.p50_ms <= found.timing.p80_ms
    assert found.peak_bytes >= 4 * SMALL.elements * 4
    assert 0 < found.details["error"] < 1e-5


def test_peak_memory_is_that_of_the_tensors():
    x = torch.ones(1000, 1000)
    assert measure.peak_memory(lambda: (x + 1) + (x + 2), CPU)[0] == 3 * 4_000_000


def test_no_input_is_taken_twice_in_a_row(monkeypatch):
    bunches = []

    def sample(calls):
        bunches.append(calls)
        return 0.2  # ms: short enough for bunches of ten

    monkeypatch.setattr(measure, "_event_sample", sample)
    calls = [lambda: None for _ in range(3)]
    measure.time_call(calls, torch.device("cuda"), seconds=0.001, first_ms=0.01)
    assert len(bunches[-1]) == 10
    made = [call for bunch in bunches for call in bunch]
    assert all(first is not second for first, second in itertools.pairwise(made))


def test_wrong_results_are_not_timed():
    record = small_record(())
    wrong = peers.Contender(
        "wrong", "", lambda _: None, lambda *_: lambda q, k, v: q + k + v, is_ours=True
    )
    failures = attention.run(record, [SMALL], [wrong], torch.float32, CPU, QUICK)
    assert failures == 1
    assert {m.contender for m in record.measurements} == {"copy"}
    assert "out is wrong" in record.left_out[-1]


def test_wrong_gradients_are_not_timed():
    record = small_record(())
    reference = next(c for c in peers.contenders() if c.name == "reference")

    def prepare(problem, notes):
        attend = reference.prepare(problem, notes)
        return lambda q, k, v: attend(q, k.detach() * 0.5 + k * 0.5, v)

    wrong = dataclasses.replace(reference, name="wrong", prepare=prepare)
    assert attention.run(record, [SMALL], [wrong], torch.float32, CPU, QUICK) == 1
    timed = {(m.contender, m.what) for m in record.measurements}
    assert ("wrong", "forward") in timed
    assert ("wrong", "forward+backward") not in timed


@pytest.mark.parametrize("mode", ("zeros", "masked", "shifted"))
@pytest.mark.parametrize("name", ("map6", "row", "narrow"))
def test_flex_mask_is_the_window(name, mode):
    shape = dataclasses.replace(BORDERS[name], padding_mode=mode)
    rows, columns = shape.padding(max(shape.dilation))
    keys = (shape.height + 2 * rows) * (shape.width + 2 * columns)
    numbers = (shape.heads, 1, 1), (1, shape.tokens, 1), (1, 1, keys)
    parts = (torch.arange(max(size)).view(size) for size in numbers)
    mask = peers.flex_mask(shape, CPU)(torch.tensor(0), *parts)

    def attend(query, key, value):
        padded = (pad(t, (0, 0, 0, 0, columns, columns, rows, rows)) for t in (key, value))
        heads_first = (t.flatten(1, 2).transpose(1, 2) for t in (query, *padded))
        out = scaled_dot_product_attention(*heads_first, attn_mask=mask)
        return out.transpose(1, 2).reshape(shape.dims)

    assert_computes(attend, shape)


@pytest.mark.parametrize("fused", (True, False))
@pytest.mark.parametrize("mode", ("zeros", "shifted"))
@pytest.mark.parametrize("name", ("map6", "row"))
def test_natten_is_given_the_same_problem(name, mode, fused):
    shape = dataclasses.replace(BORDERS[name], padding_mode=mode)
    attend_at = peers._natten_fused if fused else peers._natten_unfused
    assert_computes(peers._each_dilation(shape, partial(attend_at, sdwa.natten, shape)), shape)


@pytest.mark.parametrize("name", ("map6", "row", "narrow"))
def test_harmonics_is_given_the_same_problem(name, monkeypatch):
    def kernel(key, value, query, weights, pixels, starts, heads, width, rows, columns):
        """What torch-harmonics documents of its kernel: lists by row, columns wrap around."""
        assert width == columns == query.shape[2] and len(weights) == key.shape[1]
        key, value, query = (t.unflatten(3, (heads, -1)) for t in (key, value, query))
        out = torch.empty_like(query)
        for row in range(rows):
            taps = pixels[starts[row] : starts[row + 1]]
            for column in range(columns):
                y, x = taps // width, (taps % width + column) % width
                scores = torch.einsum("bnc,btnc->bnt", query[:, row, column], key[:, y, x])
                shares = scores.exp() * weights[y]
                shares = shares / shares.sum(-1, keepdim=True)
                out[:, row, column] = torch.einsum("bnt,btnc->bnc", shares, value[:, y, x])
        return out.flatten(3)

    lists = SimpleNamespace(_build_psi_segments=lambda *_: ())
    monkeypatch.setattr(peers, "_import_harmonics", lambda: (lists, kernel, ""))
    problem = peers.Problem(BORDERS[name], torch.float32, CPU, training=True)
    assert peers._harmonics_refuses(problem) is None
    assert_computes(peers._prepare_harmonics(problem, {}), BORDERS[name])


def test_windows_that_do_not_shift_are_not_timed():
    shifted = dataclasses.replace(SMALL, padding_mode="shifted")
    record = small_record(())
    padded = peers.Contender(
        "padded",
        "",
        lambda _: None,
        lambda *_: partial(sdwa.sliding_dilated_window_attention, **SMALL.arguments),
    )
    attention.run(record, [shifted], [padded], torch.float32, CPU, QUICK)
    assert "padded on map6, float32: out is wrong" in record.left_out[-1]


def test_natten_takes_no_window_larger_than_the_map():
    shifted = dataclasses.replace(SMALL, padding_mode="shifted")
    assert peers._natten_needs(shifted) == "a window is larger than the map"  # 9 of 5 columns
    assert peers._natten_needs(SMALL) is None  # 9 of 5 + 6
    assert peers._natten_needs(dataclasses.replace(shifted, dilation=(1, 1, 1))) is None


def test_resuming_times_only_what_is_missing(record, tmp_path):
    path = tmp_path / "results.json"
    record.save(path)
    again = start_record("attention", CPU, path, resume=True)
    assert again.measurements == record.measurements
    before = len(again.measurements)
    chosen = [c for c in peers.contenders() if c.name == "reference"]
    attention.run(again, [SMALL], chosen, torch.float32, CPU, QUICK)
    assert len(again.measurements) == before


def test_resuming_refuses_another_commit(record, tmp_path):
    path = tmp_path / "results.json"
    other = dataclasses.replace(record, setting={**record.setting, "commit": "0"})
    other.save(path)
    with pytest.raises(UserError, match="commit"):
        start_record("attention", CPU, path, resume=True)


def slower(record, times):
    rows = [
        dataclasses.replace(
            m, timing=Timing(m.timing.p20_ms, times * m.timing.p50_ms, m.timing.p80_ms, 1)
        )
        for m in record.measurements
    ]
    return dataclasses.replace(record, measurements=rows)


@pytest.mark.parametrize("bound, status", [("1.2", 0), ("1.05", 1), ("-1", 2)])
def test_compare_fails_above_its_bound(record, tmp_path, bound, status):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    record.save(a)
    slower(record, 1.1).save(b)
    result = tool("benchmarks.compare", str(a), str(b), "--fail-above", bound)
    assert result.returncode == status
    assert "Traceback" not in result.stderr
    if status < 2:
        assert "1.100  geometric mean" in result.stdout


def test_compare_reads_pytest_benchmark_files(tmp_path):
    path = tmp_path / "quick.json"
    stats = {"q1": 0.001, "median": 0.002, "q3": 0.003, "rounds": 5}
    path.write_text(json.dumps({"benchmarks": [{"name": "test", "stats": stats}]}))
    assert compare.load(path).measurements == [
        Measurement("test", "", "", "", Timing(1.0, 2.0, 3.0, 5))
    ]


def test_report_has_a_row_per_shape_and_pass(record):
    text = report.page({"cpu-small.json": record}, ["cpu-float32-peers.svg"])
    assert text.count("| map6 (2 x 6 x 5, 3 x 8, float32) |") == 2
    assert record.setting["commit"] in text
    assert "(cpu-small.json)" in text
    summary, _ = text.split("## The operator")
    assert "| unfold | forward+backward, 2 shapes | CPU |" in summary
    assert "(cpu-float32-peers.svg)" in summary


def test_report_tells_shifted_windows_apart(record):
    shape = dataclasses.replace(SMALL, dilation=(4,) * 3, padding_mode="shifted").as_json()
    rows = [
        dataclasses.replace(m, details={**m.details, "shape": shape})
        for m in record.measurements
        if m.case == "map6"
    ]
    text = report.page({"cpu-shifted.json": dataclasses.replace(record, measurements=rows)}, [])
    assert "| map6 (2 x 6 x 5, 3 x 8, dilation 4, shifted, float32) |" in text
    assert "| unfold, shifted windows | forward+backward, 1 shapes | CPU |" in text


def test_the_page_of_results_is_up_to_date():
    results = ROOT / "benchmarks/results"
    page = report.page_of(results)
    assert (results / "README.md").read_text("utf-8") == page, "run python -m benchmarks.report"
    assert str(ROOT) not in page


YES, NOT_RUN = supported.Outcome("passed", ""), supported.Outcome("skipped", "no GPU")


@pytest.mark.parametrize("on_cuda", [YES, NOT_RUN])
def test_a_backend_that_nothing_was_run_on_is_a_sentence(record, on_cuda):
    outcomes = {
        "autocast": {"cuda": [on_cuda], "triton": [NOT_RUN], "cpu": [YES], "reference": [YES]},
        "graphs": {name: [NOT_RUN] for name in ("cuda", "triton", "cpu")},
    }
    text = supported.page(outcomes, record.setting)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    if on_cuda is YES:
        assert "`triton` was not run" in text
        assert rows[0] == "| in PyTorch | `cuda` | `cpu` | `reference` |"
    else:
        assert "`cuda` and `triton` were not run" in text
        assert rows[0] == "| in PyTorch | `cpu` | `reference` |"
    assert "Without a test that ran here: graphs." in text
    assert len(rows) == 3


def test_slow_single_passes_of_several_images_are_profiled(record):
    chosen = profiling.slowest(record, 9, "cpu")
    assert {(p.shape, p.what) for p in chosen} == {("map6", "forward"), ("map7", "forward")}
    found = [record.find((p.shape, "cpu", p.what, p.dtype)) for p in chosen]
    bandwidths = [m.details["fewest_bytes"] / m.timing.p50_ms for m in found]
    assert bandwidths == sorted(bandwidths)
    one_image = dataclasses.replace(SMALL, batch=1)
    assert profiling.slowest(small_record((one_image,)), 9, "cpu") == []


def test_plots_are_drawn(tmp_path):
    record = small_record((dataclasses.replace(SMALL, width=6), OTHER))
    names = {path.name for path in plots.draw(record, tmp_path)}
    assert names == {f"cpu-float32-{plot}.svg" for plot in ("peers", "maps", "roofline")}


def test_single_passes_are_drawn_over_the_copy_bandwidth(tmp_path):
    passes = dataclasses.replace(QUICK, passes=("forward", "backward"))
    record = small_record((dataclasses.replace(SMALL, width=6), OTHER), passes)
    assert [path.name for path in plots.draw(record, tmp_path)] == ["cpu-float32-copy.svg"]


def test_records_survive_a_file(record, tmp_path):
    path = tmp_path / "results.json"
    record.save(path)
    assert Record.load(path) == record
    path.write_text("{}")
    with pytest.raises(UserError, match="not a file of results"):
        Record.load(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("benchmarks.attention", "--shapes", "nothing"), "shape set must be one of"),
        (("benchmarks.attention", "--backends", "nobody"), "backend must be one of"),
        (("benchmarks.attention", "--device", "tpu"), "--device must be cpu or cuda"),
        (("benchmarks.attention", "--seconds", "0"), "--seconds must be above 0"),
        (("benchmarks.training", "--model", "resnet"), "--model must be one of"),
        (("benchmarks.training", "--poster", "nowhere"), "no checkout of POSTER"),
        (("benchmarks.compare", "nowhere.json", "nowhere.json"), "cannot be read"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, message):
    result = tool(*arguments)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr


def test_each_turn_calls_everyone_and_changes_who_is_first():
    called = []
    calls = {name: partial(called.append, name) for name in "abc"}
    samples = measure.sample_in_turns(
        calls, measure.clock_sample, dict.fromkeys(calls, 3), rotate=True
    )
    assert "".join(called) == "abcbcacab"
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_runs_are_spread_over_turns():
    called = []
    calls = {name: partial(called.append, name) for name in "ab"}
    measure.sample_in_turns(calls, measure.clock_sample, {"a": 4, "b": 2}, turns=2)
    assert "".join(called) == "aabaab"


def test_calls_alone_and_beside_another_process_stand_in_one_row(monkeypatch):
    class Worker:
        """Calls take 8 ms, half of it with two threads, and 3 times as long beside another."""

        asked: ClassVar[list] = []  # and not answered yet

        def __init__(self, _):
            pass

        def ask(self, _, threads, __):
            self.asked.append(self)
            self.milliseconds = 8.0 / threads
            for each in self.asked:
                each.slower = 3 if len(self.asked) == 2 else 1

        def answer(self):
            self.asked.remove(self)
            return [self.milliseconds * self.slower]

        def close(self):
            pass

    monkeypatch.setattr(threads, "Worker", Worker)
    record = start_record("threads", CPU)
    goals = threads.run(record, "passive", 0.1)
    record.setting["goals"] = [str(goal) for goal in goals]
    assert len(record.measurements) == 3 * len(threads.CASES)
    assert {goal.value for goal in goals} == {2, 3}
    rows = [line for line in report.threads_table(record).splitlines() if "| passive" in line]
    assert len(rows) == len(threads.CASES)
    assert all("| 8.00 (8.00..8.00) | 4.00 (4.00..4.00) | 2.00 | 3.00 | 12.0 |" in r for r in rows)


def test_latency_interval_is_of_order_statistics():
    assert latency.median_with_interval(range(101)) == (50, 40, 61)
    assert latency.median_with_interval([3, 1, 2]) == (2, 1, 3)


@pytest.mark.parametrize("case", small_set.cases(), ids=str)
def test_small_set_lies_on_the_device_as_it_was_drawn(case):
    for name, tensor in small_set.inputs(case, torch.bfloat16, "cpu").items():
        drawn = draw(case, torch.bfloat16)[name]
        assert torch.equal(tensor, drawn.to(tensor.dtype))
        assert tensor.stride() == drawn.stride(), name


def python_step(name, code, seconds=60, aside=False):
    return Step(name, seconds, (sys.executable, "-c", code), aside)


WRITE = "import json, pathlib; pathlib.Path('{}').write_text('{}'); "
FOREVER = "print('so far', flush=True); import time; time.sleep(600)"


def test_a_check_keeps_what_was_measured_whatever_fails(record, tmp_path):
    folder, archive = tmp_path / "results", tmp_path / "results.tar.gz"
    folder.mkdir()
    record.save(folder / "gpu-fine.json")
    check = Check(folder, limit=60, pack=archive)
    check.run([
        python_step("beside", "print('fine')", aside=True),
        python_step("beside-forever", FOREVER, seconds=1, aside=True),
        python_step("fails", "print('why it failed'); raise SystemExit(3)"),
        python_step("overruns", WRITE.format(folder / "gpu-half.json", "{") + FOREVER, seconds=2),
        Step("absent", 60, ("no-such-program",)),
        python_step("after", "print('fine')"),
    ])  # fmt: skip
    status = {o.step.name: o.status for o in check.outcomes}
    assert status["beside"] == status["after"] == "passed"
    assert status["beside-forever"].startswith("stopped after")
    assert status["overruns"].startswith("stopped after")
    assert status["fails"] == "status 3"
    assert status["absent"] == "no-such-program is not installed"
    entries = json.loads((folder / "check.json").read_text())
    assert {entry["step"]: entry["status"] for entry in entries} == status
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert {"results/gpu-fine.json", "results/gpu-half.json", "results/logs/overruns.txt"} <= {
        *names
    }
    text = summary(check)
    assert "map6 float32 cpu: f" in text
    assert "why it failed" in text and "so far" in text
    assert "passed: 2 of 6" in text


def test_a_check_without_time_starts_nothing(tmp_path):
    check = Check(tmp_path, limit=1)
    check.run([python_step("late", "print('fine')"), python_step("aside", "", aside=True)])
    assert {o.status for o in check.outcomes} == {"no time left"}


def test_steps_measure_one_after_the_other(tmp_path):
    code = (
        "import time; from benchmarks.record import wait_for_turn; wait_for_turn(); "
        "print(time.monotonic()); time.sleep(0.2); print(time.monotonic())"
    )
    check = Check(tmp_path, limit=60)
    check.run([python_step(name, code) for name in ("one", "two", "three")])
    spans = [[float(line) for line in o.output.split()] for o in check.outcomes]
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


def test_a_summary_fits(tmp_path):
    check = Check(tmp_path, limit=60)
    check.run(
        [python_step(f"step{n}", "print('x' * 5000); raise SystemExit(1)") for n in range(20)]
    )
    text = summary(check)
    assert len(text) <= MOST_CHARACTERS + 4
    assert "FAILED: step19" in text.splitlines()[-1]


def test_parts_of_the_small_set_are_all_of_it():
    problems = [(case, dtype) for case in small_set.cases() for dtype in small_set.DTYPES]
    parts = [small_set.part_of(problems, f"{number}/3") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [15, 15, 14]
    assert set().union(*parts) == set(problems)
    for part in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(UserError, match="--part must be one such as"):
            small_set.part_of(problems, part)
