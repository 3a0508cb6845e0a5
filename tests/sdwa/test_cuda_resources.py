"""The compiled CUDA kernels, read from the library without a GPU, and how they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import (
    cuda_families,
    cuda_model,
    cuda_resources,
    machine_code,
    warp_clock,
    warp_path,
)
from benchmarks.gpu.cuda_parameters import Sources

PAGE = Path(__file__).parents[2] / "csrc" / "cuda" / "README.md"


@pytest.fixture(scope="module")
def kernels():
    """Of two architectures at most: to read all takes a minute."""
    try:
        listed = [*cuda_resources.read_kernels(arch=86), *cuda_resources.read_kernels(arch=90)]
        return listed or cuda_resources.read_kernels()
    except cuda_resources.Missing as error:
        pytest.skip(str(error))


def test_no_kernel_spills(kernels):
    spilling = [k for k in kernels if k.spills or k.stack]
    assert not [k for k in spilling if k.is_special], cuda_resources.table(spilling)


def test_special_kernels_are_there(kernels):
    for arch in {kernel.arch for kernel in kernels}:
        names = " ".join(k.name for k in kernels if k.arch == arch and k.is_special)
        for wanted in (
            "forward_matrix<BFloat16, 3",
            "backward_matrix<Float16, 7",
            "float, 3",
        ):
            assert wanted in names, f"sm_{arch}"


def test_paths_are_followed(kernels):
    lost = [k for k in kernels if k.is_special and k.instructions is None]
    assert not lost, cuda_resources.table(lost)


def test_rows_are_read_16_bytes_at_a_time(kernels):
    for kernel in kernels:
        if "_matrix<" in kernel.name and "16 bytes" in kernel.name and kernel.wide is not None:
            assert kernel.wide > 0.8, kernel
            assert kernel.products >= 24, kernel


def test_a_missing_library_is_one_line(tmp_path, capsys):
    assert cuda_resources.main(["--library", str(tmp_path / "none.so")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_page_has_markers(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    cuda_resources.write_between_markers(copy, "a table")
    before, after = PAGE.read_text().split(cuda_resources.BEGIN)[0], copy.read_text()
    assert after.startswith(before)
    assert "a table" in after


# Machine code as cuobjdump prints it: code(("IADD3 R4, R2, 0x10, RZ", {...schedule}), ...).


def code(*instructions: str | tuple[str, dict]) -> list[machine_code.Instruction]:
    """Parses instructions; schedule: `stall`, `write` and `read` (scoreboards), `waits`."""
    lines = []
    for i, entry in enumerate(instructions):
        text, schedule = (entry, {}) if isinstance(entry, str) else entry
        bits = schedule.get("stall", 1) | schedule.get("write", 7) << 5
        bits |= schedule.get("read", 7) << 8
        bits |= sum(1 << board for board in schedule.get("waits", ())) << 11
        lines.append(f"        /*{16 * i:04x}*/  {text} ;  /* 0x{0:016x} */")
        lines.append(f"                          /* 0x{bits << 41:016x} */")
    return machine_code.parse(lines)


def follow(program, **options) -> warp_path.Path:
    return warp_path.follow(program, base=0x210, **options)


def load(register: int, address: int, board: int, waits=()) -> tuple[str, dict]:
    return f"LDG.E.128 R{register}, desc[UR4][R{address}.64]", {"write": board, "waits": waits}


STORE = "STG.E desc[UR4][R2.64], R8"


def test_parse():
    (first, second) = code(
        ("@!P0 LDG.E.128 R4, desc[UR4][R10.64+0x20]", {"write": 2, "read": 0, "waits": (1, 3)}),
        ("@UP1 IADD3 R8, P1, R4.reuse, c[0x0][0x210], RZ", {"stall": 5}),
    )
    assert (first.guard, first.opcode, first.operands) == (
        "!P0",
        "LDG.E.128",
        ("R4", "desc[UR4][R10.64+0x20]"),
    )
    assert (first.write, first.read, first.waits, first.stall) == (2, 0, {1, 3}, 1)
    assert first.bytes_per_lane == 16
    assert second.address == 16
    assert second.operands == ("R8", "P1", "R4", "c[0x0][0x210]", "RZ")
    assert (second.write, second.read, second.waits, second.stall) == (None, None, set(), 5)


@pytest.mark.parametrize(
    "loads,waits",
    [
        pytest.param([load(4, 2, 0), load(8, 2, 1)], 1, id="side by side"),
        pytest.param([load(4, 2, 0), load(8, 4, 1, waits=(0,))], 2, id="one after the other"),
        pytest.param([load(4, 2, 0), load(12, 2, 0), load(8, 2, 0, waits=(0,))], 2, id="a board"),
    ],
)
def test_waits(loads, waits):
    path = follow(code(*loads, (STORE, {"waits": (0, 1)}), "EXIT"))
    assert path.ended
    assert warp_clock.waits_in_a_row(path.steps) == waits


def test_asynchronous_copies_are_waited_for_in_groups():
    copy = "LDGSTS.E.BYPASS.128 [R17], desc[UR8][R4.64]"
    group = ("LDGDEPBAR", {"write": 0})
    shared = ("LDS.128 R4, [R16]", {"write": 1})
    start = (copy, copy, group, copy, group)

    def cycles(*rest, latency=1000):
        return warp_clock.cycles(follow(code(*start, *rest, STORE, "EXIT")).steps, latency)

    assert cycles() < 100  # nothing waits
    first = cycles("DEPBAR.LE SB0, 0x1", shared)
    both = cycles("DEPBAR.LE SB0, 0x1", shared, "DEPBAR.LE SB0, 0x0", "BAR.SYNC 0x0", shared)
    assert 1000 < first < both < 1020
    path = follow(code(*start, "DEPBAR.LE SB0, 0x0", shared, STORE, "EXIT"))
    assert warp_clock.waits_in_a_row(path.steps) == 1


def test_traffic():
    path = follow(
        code(
            "LDGSTS.E.BYPASS.128 [R17], desc[UR8][R4.64]",
            "@!PT LDS RZ, [RZ]",
            "LDSM.16.M88.4 R4, [R16]",
            "HMMA.16816.F32.BF16 R8, R48, R20, RZ",
            "STG.E desc[UR4][R2.64], R8",
            "EXIT",
        )
    )
    traffic = warp_clock.traffic(path.steps)
    assert (traffic.loads, traffic.products, traffic.spills) == (1, 1, 0)
    assert (traffic.global_bytes, traffic.wide_bytes) == (32 * 20, 32 * 16)
    assert traffic.l1_bytes == 32 * (16 + 16 + 4)


NULL_TESTS = {
    "halves": ("ISETP.NE.U32.AND P0, PT, RZ, UR6, PT", "ISETP.NE.AND.EX P0, PT, RZ, UR7, PT, P0"),
    "whole": ("ISETP.NE.S64.AND P0, PT, RZ, UR6, PT",),
    "kept in a bit": (
        "ISETP.NE.U32.AND P1, PT, RZ, UR6, PT",
        "ISETP.NE.AND.EX P1, PT, RZ, UR7, PT, P1",
        "LOP3.LUT R9, R9, 0xfffffffb, RZ, 0xc0, !PT",
        "@P1 LOP3.LUT R9, R9, 0x4, RZ, 0xfc, !PT",
        "LOP3.LUT P0, RZ, R9, 0x4, RZ, 0xc0, !PT",
    ),
    "of its part": (  # part = bias == nullptr ? nullptr : bias + ...
        "CS2R R8, SRZ",
        "ISETP.NE.U32.AND P1, PT, RZ, UR6, PT",
        "ISETP.NE.AND.EX P1, PT, RZ, UR7, PT, P1",
        "@P1 IMAD.WIDE R8, R11, 0x4, R12",
        "ISETP.NE.U32.AND P0, PT, R8, RZ, PT",
        "ISETP.NE.AND.EX P0, PT, R9, RZ, PT, P0",
    ),
    "kept in a register": (
        "ISETP.NE.U32.AND P1, PT, RZ, UR6, PT",
        "ISETP.NE.AND.EX P1, PT, RZ, UR7, PT, P1",
        "SEL R9, RZ, 0x1, !P1",
        "ISETP.NE.AND P0, PT, R9, RZ, PT",
    ),
}


@pytest.mark.parametrize("test", NULL_TESTS.values(), ids=NULL_TESTS)
def test_an_optional_pointer_is_absent(test):
    # if (bias != nullptr) load
    skip = len(test) + 3
    program = code(
        "ULDC.64 UR6, c[0x0][0x240]",
        *test,
        f"@!P0 BRA 0x{16 * skip:x}",
        load(4, 2, 0),
        STORE,
        "EXIT",
    )
    path = follow(program)
    assert path.ended
    assert path.assumed == 0
    assert warp_clock.traffic(path.steps).loads == 0


def test_a_condition_on_data_is_taken_to_hold():
    program = code("ISETP.LT.AND P0, PT, R3, R5, PT", "@!P0 BRA 0x30", load(4, 2, 0), STORE, "EXIT")
    path = follow(program)
    assert path.assumed == 1
    assert warp_clock.traffic(path.steps).loads == 1


def test_a_warp_without_a_tile_is_not_followed():
    # if (!inside) { ... return; }, longer than the work
    program = code("@P0 BRA 0x50", "MOV R1, R2", "MOV R1, R2", "MOV R1, R2", "EXIT", STORE, "EXIT")
    path = follow(program)
    assert [step.instruction.base for step in path.steps] == ["BRA", "STG", "EXIT"]


LOOP = (
    "ISETP.GE.AND P0, PT, R4, {bound}, PT",
    "@!P0 BRA 0x10",
)


def test_loops():
    count = ("HFMA2.MMA R4, -RZ, RZ, 0, 0", "IADD3 R4, R4, 0x1, RZ")
    end = (STORE, "EXIT")

    def loop(bound, **options):
        lines = [line.format(bound=bound) for line in LOOP]
        path = follow(code(*count, *lines, *end), **options)
        return sum(step.instruction.base == "IADD3" for step in path.steps), path.loops

    assert loop("0x5") == (5, 0)
    assert loop("c[0x0][0x228]", parameters={0x18: 3}) == (3, 0)
    assert loop("c[0x0][0x228]", rounds=4) == (4, 1)  # not known


def test_a_loop_over_lanes_has_the_rounds_of_the_first():
    program = code(
        "S2R R4, SR_TID.X",
        "IADD3 R4, R4, 0x8, RZ",
        "ISETP.GE.AND P0, PT, R4, 0x20, PT",
        "@!P0 BRA 0x10",
        STORE,
        "EXIT",
    )
    path = follow(program, rounds=100)
    assert sum(step.instruction.base == "IADD3" for step in path.steps) == 4
    assert path.loops == 0


def test_a_path_through_a_computed_branch_is_given_up():
    assert not follow(code("BRX R4 -0x10", STORE, "EXIT")).ended


@pytest.mark.parametrize(
    "arch,registers,threads,shared,blocks",
    [
        # As NVIDIA's occupancy calculator has them.
        (90, 32, 1024, 0, 2),
        (90, 128, 128, 0, 4),
        (90, 168, 128, 0, 3),
        (90, 255, 256, 0, 1),
        (90, 40, 128, 100 * 1024, 2),
        (90, 24, 32, 0, 32),
        (86, 32, 128, 0, 12),
        (86, 32, 64, 0, 16),
        (86, 128, 128, 19584, 4),
        (86, 64, 128, 48 * 1024, 2),
        (80, 32, 32, 0, 32),
        (89, 16, 64, 0, 24),
        (120, 65, 256, 0, 3),
    ],
)
def test_resident_blocks(arch, registers, threads, shared, blocks):
    limits = cuda_model.MULTIPROCESSORS[arch]
    assert cuda_model.resident_blocks(limits, registers, threads, shared) == blocks


def test_prediction():
    gpu = cuda_model.GPUS[0]

    def predict(waits=1, **changed):
        counts = {
            "fewest_bytes": 8192,
            "memory_bytes": 8192,
            "bytes_before": 0,
            "issued": 100,
            "products": 0,
            "l1_bytes": 0,
            "cycles": lambda latency: 1000 + waits * latency,
            "warps": 64,
        }
        return cuda_model.predict(gpu, cuda_model.Counts(**counts | changed))

    assert predict().limit == "bytes"
    assert predict().fraction > 0.95
    assert predict(memory_bytes=2 * 8192).fraction == pytest.approx(0.5, rel=0.05)
    assert predict(bytes_before=8192).fraction == pytest.approx(0.5, rel=0.05)
    assert predict(issued=10**5).limit == "instructions"
    assert predict(products=10**5).limit == "products"
    assert predict(l1_bytes=10**7).limit == "L1"
    assert predict(waits=30, warps=8).limit == "latency"
    assert predict(waits=30, warps=8).fraction < predict(waits=30, warps=16).fraction < 1


def test_launches():
    """As choose_stages and StagedWarps have them."""

    def launch(name, arch, warps):
        family, instance = cuda_families.family_of(name)
        return family.launch(instance, cuda_model.MULTIPROCESSORS[arch], warps)

    two = launch("forward_matrix<BFloat16, 3, 64 features, 16 bytes>", 90, 16)
    assert (two.warps, two.shared, two.parameters["slots"]) == (4, 4 * 2 * 36 * 128, 2)
    one = launch("backward_matrix<BFloat16, 3, 64 features at a time, 16 bytes>", 86, 12)
    assert one.parameters["slots"] == 1
    assert one.shared == one.warps * (2 * 36 * 128 + 36 * 8)


def test_parameters():
    sources = Sources(
        {
            "work.cuh": """
                constexpr int kHeads = 4;
                struct Divisor {
                  uint32_t divisor, shift;
                  static Divisor of(int64_t divisor) { return {}; }
                  uint32_t split(uint32_t& n) const { if (n) { n = 0; } return n; }
                };
                struct Call {
                  int64_t image;
                };
                struct Work : Call {
                  int32_t height, width, head_dim;
                  const bool* key_mask;  // or null
                  Divisor head[kHeads];
                };
            """,
            "kernel.cu": """
                template <typename T>
                struct Params {
                  using A = Accumulation<T>;
                  Work work;
                  const A* bias;
                  A scale;
                  int slots = 0;
                };
                __global__ void kernel(const __grid_constant__ Params<T> p) {}
            """,
        }
    )
    layout = sources.parameters("kernel")
    assert layout.size == 80
    assert layout.offsets["work.head_dim"] == 16
    assert layout.offsets["work.key_mask"] == 24
    assert layout.offsets["bias"] == 64
    assert layout.offsets["slots"] == 76
    assert sources.parameters("kernel", "double").offsets["slots"] == 80
    assert sources.parameters("other") is None
