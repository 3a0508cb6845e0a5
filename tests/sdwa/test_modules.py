"""The layer, the allocation of heads, and DilateFormer's checkpoints."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch

import sdwa
from sdwa.modules import deal_dilation
from tests.sdwa.cases import GOLDEN


def steps(pairs):
    assert all(h == w for h, w in pairs)
    return tuple(h for h, _ in pairs)


@pytest.mark.parametrize(
    ("heads", "ratio", "dilations", "expected"),
    [
        (8, 1 / 4, (2, 3), (1, 1, 2, 2, 2, 3, 3, 3)),  # the paper's best, Table 4
        (8, 1.0, (2, 3), (1,) * 8),
        (8, 0.0, (2, 3), (2, 2, 2, 2, 3, 3, 3, 3)),
        (8, 1 / 2, (2, 3), (1, 1, 1, 1, 2, 2, 3, 3)),
        (6, 1 / 3, (2, 4), (1, 1, 2, 2, 4, 4)),
    ],
)
def test_head_dilations(heads, ratio, dilations, expected):
    assert sdwa.head_dilations(heads, ratio, dilations) == expected


def test_head_dilations_are_ints_of_python():
    dilations = sdwa.head_dilations(np.int64(8), 1 / 4, (np.int64(2), np.int64(3)))
    assert [type(dilation) for dilation in dilations] == [int] * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.5, (2,)), "num_heads must be at least 1"),
        ((8, 1.5, (2,)), "standard_ratio must be from 0 to 1, got 1.5"),
        ((8, 0.3, (2,)), "whole number of heads"),
        ((8, 0.25, (2, 3, 4, 5)), "share 6 heads equally, got 4"),
        ((8, 0.25, ()), "share 6 heads equally, got 0"),
        ((8, 0.25, (2, 0)), r"dilations\[1\] must be at least 1, got 0"),
    ],
)
def test_head_dilations_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdwa.head_dilations(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8.0, 0.5, (2,)), "num_heads must be an int, got 8.0"),
        ((8, "0.5", (2,)), "standard_ratio must be a number, got '0.5'"),
        ((8, 0.5, 2), "dilations must be a sequence of ints, got 2"),
        ((8, 0.5, (2, 1.5)), r"dilations\[1\] must be an int, got 1.5"),
    ],
)
def test_head_dilations_of_the_wrong_type_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        sdwa.head_dilations(*arguments)


def test_dilation_is_dealt_to_groups_of_heads():
    assert steps(deal_dilation((1, 2, 3), 8)) == (1, 1, 2, 2, 2, 3, 3, 3)
    assert steps(deal_dilation((1, 2, 3), 9)) == (1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert steps(deal_dilation((1, 2, 3), 7)) == (1, 1, 2, 2, 3, 3, 3)
    assert steps(deal_dilation(2, 3)) == (2, 2, 2)
    assert steps(deal_dilation((4, 5), 2)) == (4, 5)
    assert deal_dilation(((1, 2), 3), 3) == ((1, 2), (3, 3), (3, 3))


@pytest.mark.parametrize(
    ("heads", "expected"),
    ((1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 3, 3)), (8, (1, 1, 2, 2, 2, 3, 3, 3))),
)
def test_default_dilation_fits_any_number_of_heads(heads, expected):
    layer = sdwa.SlidingDilatedWindowAttention(8 * heads, heads)
    assert steps(layer.dilation) == expected
    x = torch.randn(1, 5, 6, 8 * heads)
    assert layer(x).shape == x.shape


def test_self_attention_is_the_operator_between_projections(backend):
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(
        24, 4, 5, (1, 2), relative_bias=True, backend=backend.name
    )
    layer.to(backend.device_type)
    torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(2, 6, 7, 24, device=backend.device_type, requires_grad=True)
    packed = layer.kv(x).view(2, 6, 7, 2, 4, 6)
    expected = sdwa.sliding_dilated_window_attention(
        layer.q(x).view(2, 6, 7, 4, 6),
        packed[:, :, :, 0],
        packed[:, :, :, 1],
        5,
        (1, 1, 2, 2),
        bias=layer.relative_bias,
        backend="reference",
    )
    out = layer(x)
    torch.testing.assert_close(out, layer.proj(expected.flatten(3)))
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_cross_attention_takes_key_and_value_from_context():
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, dilation=(1, 2), context_dim=10, q_proj=False)
    x, context = torch.randn(2, 5, 6, 16), torch.randn(2, 5, 6, 10)
    assert layer(x, context).shape == x.shape
    assert not torch.equal(layer(x, context), layer(x, context.flip(1)))
    assert isinstance(layer.q, torch.nn.Identity)
    with pytest.raises(ValueError, match=r"x must be \(batch, height, width, 10\)"):
        layer(x)  # without a context, x would have to have its channels
    with pytest.raises(ValueError, match="context must have the batch, height and width of x"):
        layer(x, context[:, :4])
    with pytest.raises(TypeError, match="context must be a tensor, got list"):
        layer(x, [1.0])


def test_maps_that_are_no_dense_tensors_of_one_floating_dtype():
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, dilation=(1, 2))
    x = torch.randn(1, 5, 6, 16)
    nested = torch.nested.nested_tensor([x[0, 0]], layout=torch.jagged)
    for wrong, message in (
        (x.to_sparse(), "must be a dense tensor, got torch.sparse_coo: call .to_dense"),
        (nested, "must be a dense tensor, got a nested one"),
        (x.long(), "must be float32, bfloat16, float16 or float64, got torch.int64"),
    ):
        with pytest.raises(TypeError, match=f"x {message}"):
            layer(wrong)
        with pytest.raises(TypeError, match=f"context {message}"):
            layer(x, wrong)
    with pytest.raises(TypeError, match=r"dtype of x, torch\.float32, got torch\.float64"):
        layer(x, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("q_proj", (True, False))
def test_views_of_channels_first_maps(backend, q_proj):
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 4, dilation=(1, 2), q_proj=q_proj, backend=backend.name
    ).to(backend.device_type)
    x = torch.randn(2, 16, 5, 6, device=backend.device_type).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_copies_and_conversions():
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, dilation=(1, 2), relative_bias=True).eval()
    torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(2, 5, 6, 16)
    expected = layer(x)
    names = {f"{part}.{kind}" for part in ("q", "kv", "proj") for kind in ("weight", "bias")}
    assert layer.state_dict().keys() == names | {"relative_bias"}
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(copied) == repr(layer)
        assert torch.equal(copied(x), expected)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)):
        out = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_key_mask_leaves_out_the_padding_of_smaller_images(backend):
    """`key_mask` of the layer: padded images as each alone"""
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(
        24, 4, relative_bias=True, padding_mode="masked", backend=backend.name
    ).to(backend.device_type)
    torch.nn.init.normal_(layer.relative_bias)
    x, context = torch.randn(2, 2, 7, 9, 24, device=backend.device_type)
    key_mask = torch.zeros(2, 7, 9, dtype=torch.bool, device=backend.device_type)
    sizes = ((5, 9), (7, 3))
    for image, (height, width) in enumerate(sizes):
        key_mask[image, :height, :width] = True
    for maps in ((x,), (x, context)):
        out = layer(*maps, key_mask=key_mask)
        for image, (height, width) in enumerate(sizes):
            alone = layer(*(t[image : image + 1, :height, :width] for t in maps))
            torch.testing.assert_close(out[image : image + 1, :height, :width], alone)


def test_key_mask_of_a_whole_image(backend):
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, relative_bias=True, backend=backend.name)
    layer.to(backend.device_type)
    x = torch.randn(2, 5, 6, 16, device=backend.device_type, requires_grad=True)
    key_mask = torch.zeros(2, 5, 6, dtype=torch.bool, device=backend.device_type)
    key_mask[1] = True
    out = layer(x, key_mask=key_mask)
    torch.testing.assert_close(out[1:], layer(x[1:]))
    out.square().sum().backward()
    for tensor in (out, x.grad, *(parameter.grad for parameter in layer.parameters())):
        assert tensor.isfinite().all()


def test_key_mask_holds_under_attention_dropout():
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, attn_drop=0.5, backend="reference")
    x, context = torch.randn(2, 2, 5, 6, 16)
    key_mask = torch.rand(2, 5, 6) < 0.5
    outs = []
    for padding in (0.0, 100.0):
        torch.manual_seed(0)
        outs.append(layer(x, context.masked_fill(~key_mask.unsqueeze(-1), padding), key_mask))
    assert torch.equal(*outs)


def test_key_mask_refused():
    layer = sdwa.SlidingDilatedWindowAttention(16, 4)
    x = torch.randn(2, 5, 6, 16)
    with pytest.raises(
        ValueError, match=r"key_mask must be \(batch, height, width\) = \(2, 5, 6\)"
    ):
        layer(x, key_mask=torch.ones(2, 5, 7, dtype=torch.bool))
    with pytest.raises(TypeError, match="key_mask must be bool"):
        layer(x, key_mask=torch.ones(2, 5, 6))


def test_device_and_dtype_of_the_parameters():
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 4, relative_bias=True, device="cpu", dtype=torch.bfloat16
    )
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    x = torch.randn(1, 5, 6, 16, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, relative_bias=True, device="meta")
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_constructed_without_memory():
    """constructed on the device "meta", then `to_empty` and `reset_parameters`"""
    with torch.device("meta"):
        layer = sdwa.SlidingDilatedWindowAttention(16, 4, relative_bias=True)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(layer.relative_bias, torch.zeros(4, 3, 3))
    x = torch.randn(2, 5, 6, 16)
    assert layer(x).isfinite().all()
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    anew = sdwa.SlidingDilatedWindowAttention(16, 4, relative_bias=True)
    assert torch.equal(layer(x), anew(x))
    sdwa.SlidingDilatedWindowAttention(16, 4, q_proj=False).reset_parameters()


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


# PyTorch's own, of random numbers on a CPU mesh and of what nn.Linear returns.
@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
def test_fully_sharded(mesh):
    """FSDP2 of the layer, constructed on the device "meta" and trained"""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    with torch.device("meta"):
        model = torch.nn.Sequential(
            sdwa.SlidingDilatedWindowAttention(16, 4, relative_bias=True), torch.nn.Linear(16, 1)
        )
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x = torch.randn(4, 5, 6, 16)
    losses = []
    for _ in range(8):
        loss = (model(x).mean((1, 2, 3)) - torch.arange(4)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert model[0].relative_bias.full_tensor().count_nonzero() > 0


def test_attention_dropout_drops_weights_in_training_only():
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 2, dilation=(1, 2), attn_drop=0.5, backend="reference"
    )
    x = torch.randn(1, 6, 6, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    with pytest.raises(ValueError, match="attn_drop=0.5 needs backend=None"):
        sdwa.SlidingDilatedWindowAttention(16, 2, attn_drop=0.5, backend="cpu")


def test_output_dropout_is_that_of_its_module():
    # In training mode alone, as for an estimate of uncertainty; another; none.
    torch.manual_seed(0)
    layer, x = (
        sdwa.SlidingDilatedWindowAttention(16, 2, proj_drop=0.5).eval(),
        torch.randn(3, 4, 16),
    )
    x = x.unsqueeze(0)
    kept = layer(x)
    layer.proj_drop.train()
    assert (layer(x) == 0).any()
    layer.train()
    layer.proj_drop.eval()
    assert torch.equal(layer(x), kept)
    layer.proj_drop = torch.nn.Identity()
    assert torch.equal(layer(x), kept)
    layer.proj_drop = torch.nn.AlphaDropout(0.5)
    assert not torch.equal(layer(x), kept)


def test_hooks_of_the_output_dropout_are_called():
    layer, x = sdwa.SlidingDilatedWindowAttention(16, 2).eval(), torch.randn(1, 3, 4, 16)
    layer.proj_drop.register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
    assert (layer(x) == 0).all()


def test_backward_hooks_of_the_output_dropout_are_called():
    layer, called = sdwa.SlidingDilatedWindowAttention(16, 2), []
    layer.proj_drop.register_full_backward_hook(lambda *_: called.append("backward"))
    layer(torch.randn(1, 3, 4, 16)).sum().backward()
    assert called == ["backward"]


def test_hooks_of_all_modules_see_the_output_dropout():
    layer, seen = sdwa.SlidingDilatedWindowAttention(16, 2), []
    with torch.nn.modules.module.register_module_forward_hook(lambda part, *_: seen.append(part)):
        layer(torch.randn(1, 3, 4, 16))
    assert layer.proj_drop in seen


def test_weights_of_a_layer():
    # As the example of `attention_weights` gets them.
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, relative_bias=True, is_causal=(False, True))
    torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(1, 5, 6, 16)
    example = sdwa.attention_weights.__doc__.split(" of the map x to itself:")[1]
    lines = [
        line.strip()[4:] for line in example.splitlines() if line.strip()[:3] in (">>>", "...")
    ]
    code = "\n".join(lines[1:]).replace("attention_weights(", "weights = attention_weights(")
    names = {"layer": layer, "x": x, "attention_weights": sdwa.attention_weights}
    exec(code.removesuffix(".shape"), names)
    steps_in_order = [step for step, _ in layer.dilation]
    assert names["weights"].shape == (1, 5, 6, 4, 3, 3)
    value = names["v"].movedim(3, 1).flatten(0, 1).movedim(-1, 1)  # (heads, head_dim, 5, 6)
    windows = [
        torch.nn.functional.unfold(v[None], 3, step, step).view(4, 9, 5, 6)
        for v, step in zip(value, steps_in_order, strict=True)
    ]
    out = torch.einsum("yxnt,ndtyx->yxnd", names["weights"][0].flatten(3), torch.stack(windows))
    torch.testing.assert_close(layer.proj(out.flatten(2))[None], layer(x), rtol=1e-4, atol=1e-5)


def test_numbers_of_numpy_are_those_of_python():
    layer = sdwa.SlidingDilatedWindowAttention(
        *map(np.int64, (16, 2, 3, 2)), proj_drop=np.float64(0.1), context_dim=np.int64(8)
    )
    assert {type(value) for value in (layer.dim, layer.num_heads, layer.context_dim)} == {int}
    assert {type(value) for value in (layer.attn_drop, layer.proj_drop.p)} == {float}
    x, context = torch.randn(1, 4, 5, 16), torch.randn(1, 4, 5, 8)
    expected = layer.eval()(x, context)
    for trace in (torch.fx.symbolic_trace, partial(torch.compile, fullgraph=True, backend="eager")):
        assert torch.equal(trace(layer)(x, context), expected)


def test_attention_dropout_says_once_what_it_costs():
    x = torch.randn(1, 6, 6, 16)
    arguments = {"dim": 16, "num_heads": 2, "attn_drop": 0.5}
    sdwa.modules._warn_of_attn_drop.cache_clear()
    # Nothing is said where it costs nothing more: warnings are errors here.
    sdwa.SlidingDilatedWindowAttention(**arguments).eval()(x)
    sdwa.SlidingDilatedWindowAttention(**arguments, backend="reference")(x)
    with pytest.warns(UserWarning, match="attn_drop > 0: in training.*slower.*memory"):
        sdwa.SlidingDilatedWindowAttention(**arguments)(x)
    sdwa.SlidingDilatedWindowAttention(**arguments)(x)
    compiled = torch.compile(
        sdwa.SlidingDilatedWindowAttention(**arguments), backend="eager", fullgraph=True
    )
    sdwa.modules._warn_of_attn_drop.cache_clear()
    assert compiled(x).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "dim must be a multiple of num_heads, got 10 and 4"),
        ({"dim": 8, "num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"dim": 514, "num_heads": 2}, "at most 256 channels, got 514 and 2 heads"),
        ({"dim": 8, "num_heads": 2, "kernel_size": 2}, "kernel_size must be odd"),
        (
            {"dim": 8, "num_heads": 2, "dilation": (1, 2, 3)},
            "an entry per head, or fewer to share: got 3 entries .* for 2 heads",
        ),
        ({"dim": 8, "kernel_size": (4,)}, r"kernel_size must be odd .* got \(4,\) "),
        (
            {"dim": 8, "num_heads": 2, "kernel_size": (3,), "dilation": (1, 2, 3)},
            r"an entry per head, or fewer to share: got 3 entries \(1, 2, 3\) for 2 heads",
        ),
        ({"dim": 8, "dilation": ()}, "an entry per head, or fewer to share: got 0 entries"),
        ({"dim": 8, "dilation": (1, -2)}, r"dilation must be from 1 to .* got -2 in \(1, -2\)"),
        ({"dim": 8, "context_dim": 0}, "context_dim must be at least 1, got 0"),
        ({"dim": 8, "scale": float("nan")}, "scale must be finite, got nan"),
        ({"dim": 8, "attn_drop": 1.5}, "attn_drop must be from 0 to 1, got 1.5"),
        ({"dim": 8, "proj_drop": -0.5}, "proj_drop must be from 0 to 1, got -0.5"),
        ({"dim": 8, "padding_mode": "same"}, "padding_mode must be .*got 'same'"),
        ({"dim": 8, "backend": "numpy"}, "backend must be None or one of.*got 'numpy'"),
    ],
)
def test_layer_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdwa.SlidingDilatedWindowAttention(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 8.0}, "dim must be an int, got 8.0"),
        ({"dim": 8, "num_heads": True}, "num_heads must be an int, got True"),
        ({"dim": 8, "scale": "1"}, "scale must be a number or None, got str"),
        ({"dim": 8, "attn_drop": "0.1"}, "attn_drop must be a number, got '0.1'"),
        ({"dim": 8, "q_proj": 3}, "q_proj must be a bool, got 3"),
        ({"dim": 8, "qkv_bias": "no"}, "qkv_bias must be a bool, got 'no'"),
        ({"dim": 8, "relative_bias": None}, "relative_bias must be a bool, got None"),
        ({"dim": 8, "dilation": "12"}, "dilation must be an int or a sequence.* got str"),
        (
            {"dim": 8, "kernel_size": (3,), "is_causal": (True, False)},
            r"is_causal must be a bool for sequences, got \(True, False\)",
        ),
    ],
)
def test_layer_refuses_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        sdwa.SlidingDilatedWindowAttention(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [torch.zeros(2, 1, 6, 8)],
            r"x must be \(batch, length, 8\), got shape \(2, 1, 6, 8\): a la",
        ),
        ([torch.zeros(2, 6, 9)], r"x must be \(batch, length, 8\), got shape \(2, 6, 9\)$"),
        (
            [torch.zeros(2, 6, 8), torch.zeros(2, 5, 8)],
            r"context must have the batch and length of x, \(2, 6\): got shape \(2, 5, 8\)",
        ),
        (
            [torch.zeros(2, 6, 8), None, torch.ones(2, 5, dtype=torch.bool)],
            r"key_mask must be \(batch, length\) = \(2, 6\), got shape \(2, 5\)",
        ),
    ],
)
def test_layer_for_sequences_refuses(arguments, message):
    layer = sdwa.SlidingDilatedWindowAttention(8, 2, (3,))
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


def test_weights_of_a_layer_for_sequences():
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 4, (3,), dilation=2, relative_bias=True, is_causal=True, padding_mode="masked"
    )
    torch.nn.init.normal_(layer.relative_bias)
    query, key = torch.randn(2, 1, 6, 4, 4)
    weights = sdwa.attention_weights(
        *(query, key, layer.kernel_size, layer.dilation),
        bias=layer.relative_bias,
        padding_mode=layer.padding_mode,
        is_causal=layer.is_causal,
    )
    expected = sdwa.attention_weights(
        *(query, key, 3, 2), bias=layer.relative_bias, padding_mode="masked", is_causal=True
    )
    assert torch.equal(weights, expected)
    with pytest.raises(TypeError, match=r"entries must be ints for .*, got \(2, 1\) in"):
        sdwa.attention_weights(query, key, 3, ((2, 1),) * 4)
    with pytest.raises(TypeError, match=r"kernel_size must be an int for .*, got \(3, 3\)"):
        sdwa.attention_weights(query, key, (3, 3))


def dilateformer():
    arrays = dict(np.load(GOLDEN / "module_dilateformer_72d_3h.npz"))
    state = {
        name.removeprefix("state/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("state/")
    }
    options = {
        "num_heads": int(arrays["num_heads"]),
        "dilation": tuple(arrays["dilation"].tolist()),
    }
    return state, options, torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])


def test_dilateformer_checkpoint_gives_the_same_output(backend):
    state, options, x, y = dilateformer()
    layer = sdwa.SlidingDilatedWindowAttention.from_dilateformer(
        state, **options, backend=backend.name
    ).to(backend.device_type)
    before = x.clone()
    torch.testing.assert_close(layer(x.to(backend.device_type)).cpu(), y, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_dilateformer_checkpoint_within_a_larger_one():
    state, options, x, y = dilateformer()
    larger = {f"blocks.0.attn.{name}": tensor for name, tensor in state.items()}
    larger["head.weight"] = torch.zeros(1)
    layer = sdwa.SlidingDilatedWindowAttention.from_dilateformer(
        larger, **options, prefix="blocks.0.attn."
    )
    torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-5)


def test_dilateformer_checkpoint_keeps_its_dtype_and_device():
    state, options, x, y = dilateformer()
    load = sdwa.SlidingDilatedWindowAttention.from_dilateformer
    doubles = {name: tensor.double() for name, tensor in state.items()}
    layer = load(doubles, **options)
    torch.testing.assert_close(layer(x.double()), y.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        load(doubles, **options, dtype=torch.float32)(x), y, rtol=1e-5, atol=1e-5
    )
    with torch.device("meta"):
        assert not load(state, **options).kv.weight.is_meta


def test_dilateformer_checkpoint_refused():
    state, options, _, _ = dilateformer()
    load = sdwa.SlidingDilatedWindowAttention.from_dilateformer
    with pytest.raises(TypeError, match="state_dict must be a mapping, got NoneType"):
        load(None, **options)
    with pytest.raises(TypeError, match="state_dict must hold tensors, got list for proj.bias"):
        load(state | {"proj.bias": [0.0]}, **options)
    with pytest.raises(TypeError, match="prefix must be a str, got int"):
        load(state, **options, prefix=3)
    with pytest.raises(ValueError, match=r"missing \['proj.weight'\]"):
        load({k: v for k, v in state.items() if k != "proj.weight"}, **options)
    with pytest.raises(ValueError, match=r"unexpected \['norm.weight'\]"):
        load(state | {"norm.weight": torch.ones(1)}, **options)
    with pytest.raises(ValueError, match="num_heads must be a multiple.*got 4 heads"):
        load(state, num_heads=4, dilation=(1, 2, 3))
    for name, wrong in (
        ("qkv.weight", state["qkv.weight"][:-1]),
        ("qkv.bias", torch.zeros(5)),
        ("proj.weight", torch.zeros(5, 72)),
        ("proj.bias", torch.zeros(5)),
    ):
        with pytest.raises(ValueError, match=f"state_dict must hold {name} of shape.*got"):
            load(state | {name: wrong}, **options)
