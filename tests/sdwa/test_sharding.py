"""DTensors: processes that talk over gloo, each with its shards, against the whole call."""

import datetime
import functools
import multiprocessing
import multiprocessing.connection
import subprocess
import sys
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.debug import CommDebugMode

import sdwa

CONTEXT = multiprocessing.get_context("forkserver")  # imports once, then forks
RANKS = 4
# Over four ranks both 3 images and 5 heads leave one with nothing: 1, 1, 1, 0 and 2, 2, 1, 0.
SHAPE = (3, 4, 5, 5, 4)
DILATION = (1, 2, (2, 1), 3, 1)
BATCH, HEIGHT, HEADS, HEAD_DIM, WHOLE = Shard(0), Shard(1), Shard(3), Shard(4), Replicate()


class World:
    """The processes. They last for all tests; where one fails all end, and others take over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks = []  # (process, pipe)

    def run(self, check, *arguments) -> None:
        """Calls `check(*arguments)` in every process; fails where it raises in one."""
        if not self.ranks:
            self._start()
        waiting = {}
        for rank, (_, pipe) in enumerate(self.ranks):
            pipe.send((check, arguments))
            waiting[pipe] = rank
        while waiting:
            for pipe in multiprocessing.connection.wait(list(waiting)):
                rank = waiting.pop(pipe)
                try:
                    error = pipe.recv()
                except EOFError:
                    error = "it died"
                if error is not None:
                    self.stop()
                    pytest.fail(f"rank {rank} of {RANKS}: {error}")

    def stop(self) -> None:
        for process, _ in self.ranks:
            process.kill()
            process.join()
        self.ranks.clear()

    def _start(self) -> None:
        store = self.folder / f"store_{len(list(self.folder.iterdir()))}"
        for rank in range(RANKS):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(target=serve, args=(rank, store, there), daemon=True)
            process.start()
            there.close()
            self.ranks.append((process, here))


def serve(rank: int, store: Path, pipe) -> None:
    """What a process does: the checks that come, one after the other."""
    torch.set_num_threads(1)
    init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=60),
    )
    while True:
        check, arguments = pipe.recv()
        try:
            check(*arguments)
        except BaseException:
            pipe.send(traceback.format_exc())
        else:
            pipe.send(None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    # Not before: the server is that of all tests, and the first to use it says what it imports.
    CONTEXT.set_forkserver_preload(["torch.distributed.tensor", "sdwa"])
    world = World(tmp_path_factory.mktemp("world"))
    yield world
    world.stop()


class Layout(NamedTuple):
    """Where the tensors of a call lie.

    Of each head: bias and scale. Without placements these and key_mask are plain tensors.
    """

    mesh: tuple[int, ...]
    query: tuple[Placement, ...]
    key: tuple[Placement, ...] | None = None  # as query
    of_head: tuple[Placement, ...] | None = None
    key_mask: tuple[Placement, ...] | None = None
    out: tuple[Placement, ...] | None = None  # as query
    grad_of_head: tuple[Placement, ...] | None = None


def draw():
    """query, key, value, bias, scale, key_mask, gradients of out and lse: the same on each rank."""
    generator = torch.Generator().manual_seed(0)
    *pixels, heads, head_dim = SHAPE
    value = (*pixels, heads, head_dim - 1)
    shapes = (SHAPE, SHAPE, value, (heads, 3, 3), (heads,), pixels, value, SHAPE[:4])
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[5] = tensors[5] > -0.5
    return tensors


@functools.cache  # compiled functions fail in PyTorch where an equal mesh takes another's place
def mesh_of(*shape):
    return init_device_mesh("cpu", shape)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_layout(backend, layout):
    mesh = mesh_of(*layout.mesh)
    *inputs, key_mask, grad_out, grad_lse = draw()
    options = {"padding_mode": "masked", "return_lse": True, "backend": backend}

    def attend(query, key, value, bias, scale, key_mask):
        return sdwa.sliding_dilated_window_attention(
            query, key, value, 3, DILATION, bias=bias, scale=scale, key_mask=key_mask, **options
        )

    def spread(tensor, placements):
        return tensor if placements is None else distribute_tensor(tensor, mesh, placements)

    plain = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = attend(*plain, key_mask)
    expected_grads = torch.autograd.grad(expected, plain, (grad_out, grad_lse))

    key = layout.key or layout.query
    places = (layout.query, key, key, layout.of_head, layout.of_head)
    inputs = [
        spread(tensor.clone(), placements).requires_grad_()
        for tensor, placements in zip(inputs, places, strict=True)
    ]
    results = attend(*inputs, spread(key_mask, layout.key_mask))
    out = layout.out or layout.query
    grads = torch.autograd.grad(results, inputs, (spread(grad_out, out), spread(grad_lse, out)))

    assert [result.placements for result in results] == [out, out]
    assert all(r.to_local().is_contiguous() for r in results)  # as their strides say
    for grad in grads[3:]:
        assert getattr(grad, "placements", None) == layout.grad_of_head
    for result, target in zip((*results, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(whole(result), target)


LAYOUTS = {
    "batch": Layout((4,), (BATCH,)),
    "batch, all DTensors": Layout(
        (4,), (BATCH,), of_head=(WHOLE,), key_mask=(BATCH,), grad_of_head=(Partial(),)
    ),
    "heads": Layout((4,), (HEADS,)),
    "heads, all DTensors": Layout(
        (4,), (HEADS,), of_head=(WHOLE,), key_mask=(WHOLE,), grad_of_head=(WHOLE,)
    ),
    "heads, also those of bias and scale": Layout(
        (4,), (HEADS,), of_head=(Shard(0),), grad_of_head=(Shard(0),)
    ),
    "batch x heads": Layout((2, 2), (BATCH, HEADS)),
    "heads x batch, all DTensors": Layout(
        (2, 2),
        (HEADS, BATCH),
        of_head=(Shard(0), WHOLE),
        key_mask=(WHOLE, BATCH),
        grad_of_head=(Shard(0), Partial()),
    ),
    "batch x batch": Layout((2, 2), (BATCH, BATCH)),
    "heads x heads": Layout((2, 2), (HEADS, HEADS)),
    "replicated x heads": Layout((2, 2), (WHOLE, HEADS)),
}
# PyTorch's own operators bring such placements together by themselves.
ELSEWHERE = {
    "key replicated": Layout((4,), (HEADS,), key=(WHOLE,)),
    "key over the batch": Layout((4,), (HEADS,), key=(BATCH,)),
    "query over the height": Layout((4,), (HEIGHT,), out=(WHOLE,)),
    "query over heads x channels": Layout((2, 2), (HEADS, HEAD_DIM), out=(HEADS, WHOLE)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_sharded(backend, layout, world):
    """`DTensor` sharded over batch and over heads, forward and backward"""
    run_on_cpu(world, backend, check_layout, layout)


@pytest.mark.parametrize("layout", ELSEWHERE.values(), ids=ELSEWHERE)
def test_other_placements_are_changed(backend, layout, world):
    run_on_cpu(world, backend, check_layout, layout)


def run_on_cpu(world, backend, check, *arguments):
    if backend.device_type != "cpu":
        pytest.skip("the processes' tensors lie on the CPU")
    world.run(check, backend.name, *arguments)


def check_partial_query():
    mesh = mesh_of(RANKS)
    query, key, value = draw()[:3]
    whole_key, whole_value = (distribute_tensor(t, mesh, [WHOLE]) for t in (key, value))
    partial = DTensor.from_local(query / RANKS, mesh, [Partial()])
    out = sdwa.sliding_dilated_window_attention(partial, whole_key, whole_value, 3, DILATION)
    assert out.placements == (WHOLE,)
    expected = sdwa.sliding_dilated_window_attention(query, key, value, 3, DILATION)
    torch.testing.assert_close(out.to_local(), expected)


def test_partial_query(world):
    world.run(check_partial_query)


def check_communication():
    mesh = mesh_of(2, 2)
    *maps, bias = draw()[:4]
    maps = [distribute_tensor(t, mesh, [BATCH, HEADS]).requires_grad_() for t in maps]
    bias = distribute_tensor(bias, mesh, [WHOLE, Shard(0)]).requires_grad_()
    with CommDebugMode() as communication:
        out = sdwa.sliding_dilated_window_attention(*maps, 3, DILATION, bias=bias)
        torch.autograd.grad(out, [*maps, bias], torch.ones_like(out))  # that of bias is Partial
    assert communication.get_total_counts() == 0


def test_no_communication_where_shards_fit(world):
    world.run(check_communication)


def check_scale_of_one_element():
    mesh = mesh_of(2, 2)
    *maps, _, scale = draw()[:5]
    plain = scale[0].clone().requires_grad_()
    out = sdwa.sliding_dilated_window_attention(*maps, 3, DILATION, scale=plain)
    (expected,) = torch.autograd.grad(out.sum(), plain)
    maps = [distribute_tensor(t, mesh, [BATCH, HEADS]) for t in maps]
    for placements in (None, (Partial(), Partial())):
        scale = plain if placements is None else distribute_tensor(plain, mesh, [WHOLE, WHOLE])
        out = sdwa.sliding_dilated_window_attention(*maps, 3, DILATION, scale=scale)
        (grad,) = torch.autograd.grad(out.sum(), scale)
        assert getattr(grad, "placements", None) == placements
        torch.testing.assert_close(whole(grad), expected)


def test_scale_of_one_element(world):
    world.run(check_scale_of_one_element)


def check_autocast():
    mesh = mesh_of(RANKS)
    query, key, value = (tensor.float() for tensor in draw()[:3])
    key = key.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected = sdwa.sliding_dilated_window_attention(query, key, value, 3, DILATION)
        maps = [distribute_tensor(t, mesh, [HEADS]) for t in (query, key, value)]
        out = sdwa.sliding_dilated_window_attention(*maps, 3, DILATION)
    assert out.dtype == out.to_local().dtype == torch.bfloat16
    torch.testing.assert_close(out.full_tensor(), expected)


def test_autocast(world):
    world.run(check_autocast)


def check_errors():
    mesh = mesh_of(RANKS)
    other = mesh_of(2, 2)
    query, key, value, bias = draw()[:4]
    q, k, v = (distribute_tensor(t, mesh, [HEADS]) for t in (query, key, value))
    elsewhere = distribute_tensor(key, other, [HEADS, WHOLE])
    spread_bias = distribute_tensor(bias, mesh, [WHOLE])

    def attend(*tensors, dilation=DILATION, **options):
        sdwa.sliding_dilated_window_attention(*tensors, 3, dilation, **options)

    with pytest.raises(TypeError, match="key must be a DTensor where query is one, got Tensor"):
        attend(q, key, v)
    with pytest.raises(TypeError, match="query must be a DTensor where value is one, got Tensor"):
        attend(query, key, v)
    with pytest.raises(TypeError, match="query must be a DTensor where bias is one, got Tensor"):
        attend(query, key, value, bias=spread_bias)
    for act in (
        lambda: sdwa.attention_weights(q, k),
        lambda: distribute_module(
            sdwa.SlidingDilatedWindowAttention(16, 2, attn_drop=0.5, backend="reference"), mesh
        )(distribute_tensor(torch.randn(2, 3, 4, 16), mesh, [WHOLE])),
    ):
        with pytest.raises(NotImplementedError, match="for plain tensors alone, got a DTensor"):
            act()
    with pytest.raises(ValueError, match="key must be on the device mesh of query, .*: got "):
        attend(q, elsewhere, v)
    # The last rank has no heads, and says the same as the others.
    with pytest.raises(ValueError, match="got 2 entries .* for 5 heads"):
        attend(q, k, v, dilation=(1, 2))
    with pytest.raises(
        ValueError, match=r"bias must be .* = \(5, 3, 3\) or .*, got shape \(2, 3, 3\)"
    ):
        attend(q, k, v, bias=bias[:2])
    with pytest.raises(ValueError, match="backend must be None or one of"):
        attend(q, k, v, backend="none")
    with pytest.raises(sdwa.BackendError):
        attend(q, k, v, backend="cuda")
    with pytest.raises(TypeError, match="return_lse must be a bool, got 'no'"):
        attend(q, k, v, return_lse="no")


def test_errors(world):
    world.run(check_errors)


def check_compiled(backend):
    mesh = mesh_of(2, 2)
    *maps, bias = draw()[:4]
    maps = [distribute_tensor(t, mesh, [BATCH, HEADS]).requires_grad_() for t in maps]
    bias = distribute_tensor(bias, mesh, [WHOLE, Shard(0)]).requires_grad_()

    def attend(query, key, value, bias):
        out, lse = sdwa.sliding_dilated_window_attention(
            query.sin(), key, value, 3, DILATION, bias=bias, return_lse=True, backend=backend
        )
        return out.cos(), lse

    results = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        out, lse = function(*maps, bias)
        grads = torch.autograd.grad(out.sum() + lse.sum(), [*maps, bias])
        results.append([t.full_tensor() for t in (out, lse, *grads)])
    torch.testing.assert_close(*results)


def test_compiled(backend, world):
    """`torch.compile(fullgraph=True)` with `DTensor`s"""
    run_on_cpu(world, backend, check_compiled)


def check_layer(backend):
    mesh = mesh_of(RANKS)
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(8, 4, relative_bias=True, backend=backend).double()
    torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(4, 5, 6, 8, dtype=torch.float64)
    expected = layer(x)
    expected_grads = torch.autograd.grad(expected.sin().sum(), list(layer.parameters()))

    distribute_module(layer, mesh)  # replicates the parameters
    out = layer(distribute_tensor(x, mesh, [BATCH]))
    grads = torch.autograd.grad(out.sin().sum(), list(layer.parameters()))
    assert out.placements == (BATCH,)
    for result, target in zip((out, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(result.full_tensor(), target)


def test_layer(backend, world):
    """the layer, its parameters replicated by `distribute_module`, of a batch that is sharded"""
    run_on_cpu(world, backend, check_layer)


def test_a_call_while_another_thread_imports_dtensor(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", types.ModuleType("half done"))
    query, bias = torch.randn(1, 3, 3, 1, 4), torch.nn.Parameter(torch.zeros(1, 3, 3))
    sdwa.sliding_dilated_window_attention(query, query, query, bias=bias)


def test_import_does_not_load_dtensor():
    code = "import sys, sdwa; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
