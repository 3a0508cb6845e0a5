"""`sdwa.swap`: the same results from the same parameters, and what it says of it."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import sdwa
from sdwa import natten
from sdwa.swapping import Swapped


class NeighborhoodAttention(nn.Module):
    """As transformers' DiNAT has it."""

    dims = 2

    def __init__(self, dim, heads, kernel_size, dilation, dropout=0.0):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, dim // heads
        self.all_head_size = dim
        self.kernel_size, self.dilation = kernel_size, dilation
        sides = (2 * kernel_size - 1,) * self.dims
        self.rpb = nn.Parameter(torch.randn(heads, *sides))
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states, output_attentions=False):
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            part(hidden_states).view(shape).movedim(-2, 1)
            for part in (self.query, self.key, self.value)
        )
        query = query / self.attention_head_size**0.5
        window = self.kernel_size, self.dilation
        weights = self.nattendqkrpb(query, key, self.rpb, *window).softmax(-1)
        weights = self.dropout(weights)
        out = self.nattendav(weights, value, *window).movedim(1, -2).flatten(-2)
        return (out, weights) if output_attentions else (out,)

    nattendqkrpb = staticmethod(natten.natten2dqkrpb)
    nattendav = staticmethod(natten.natten2dav)


class NeighborhoodAttention1d(NeighborhoodAttention):
    """As allin1 has it, of sequences."""

    dims = 1
    nattendqkrpb = staticmethod(natten.natten1dqkrpb)
    nattendav = staticmethod(natten.natten1dav)


class NeighborhoodAttention2D(nn.Module):
    """As NATTEN has it."""

    __module__ = "natten.na2d"

    def __init__(self, dim, heads, kernel_size, dilation):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.kernel_size, self.dilation = (kernel_size,) * 2, (dilation,) * 2
        self.scale = self.head_dim**-0.5
        self.is_causal = (False, False)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        side = 2 * kernel_size - 1
        self.rpb = nn.Parameter(torch.randn(heads, side, side))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x):
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)
        window = self.kernel_size, self.dilation
        weights = natten.natten2dqkrpb(query * self.scale, key, self.rpb, *window).softmax(-1)
        out = natten.natten2dav(weights, value, *window).permute(0, 2, 3, 1, 4)
        return self.proj_drop(self.proj(out.flatten(-2)))


class PaddedAttention(nn.Module):
    """As AgileFormer has it: channels first, and maps are padded to the size of a window."""

    __module__ = "networks.nat_2d"
    __qualname__ = "NeighborhoodAttention2D"

    def __init__(self, dim, heads, kernel_size, dilation):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.kernel_size, self.dilation = kernel_size, dilation
        self.window_size = kernel_size * dilation
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rpb = nn.Parameter(torch.randn(heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x):
        height, width = x.shape[2:]
        below, right = max(0, self.window_size - height), max(0, self.window_size - width)
        x = nn.functional.pad(x, (0, right, 0, below)).movedim(1, -1)
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)
        window = self.kernel_size, self.dilation
        weights = natten.na2d_qk_with_bias(query * self.scale, key, self.rpb, *window).softmax(-1)
        out = natten.na2d_av(weights, value, *window).permute(0, 2, 3, 1, 4).flatten(-2)
        return self.proj(out[:, :height, :width]).movedim(-1, 1), None, None


class HydraNeighborhoodAttention(nn.Module):
    """As StyleNAT has it: groups of heads, with a window each."""

    def __init__(self, dim, heads, kernel_sizes, dilations, attn_drop=0.0):
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.kernel_sizes, self.dilations = kernel_sizes, dilations
        groups = torch.arange(heads).tensor_split(len(dilations))
        biases = [
            nn.Parameter(torch.randn(len(group), 2 * size - 1, 2 * size - 1))
            for group, size in zip(groups, kernel_sizes, strict=True)
        ]
        self._keep(biases)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(0.0)

    def _keep(self, biases):
        self.rpb = nn.ParameterList(biases)

    def _biases(self):
        return list(self.rpb)

    def forward(self, x):
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.num_heads, -1).permute(3, 0, 4, 1, 2, 5)
        qkv[0].mul_(self.scale)
        parts = qkv.split([len(bias) for bias in self._biases()], 2)
        outs = []
        for (query, key, value), bias, *window in zip(
            parts, self._biases(), self.kernel_sizes, self.dilations, strict=True
        ):
            weights = self.attn_drop(natten.na2d_qk(query, key, *window, rpb=bias).softmax(-1))
            outs.append(natten.na2d_av(weights, value, *window))
        return self.proj(torch.cat(outs, 1).permute(0, 2, 3, 1, 4).flatten(-2))


class NeighborhoodAttentionSplitHead(HydraNeighborhoodAttention):
    """As StyleNAT had it first."""

    def _keep(self, biases):
        self.rpb0, self.rpb1 = biases
        self.kernel_size_0, self.kernel_size_1 = self.kernel_sizes
        self.dilation_0, self.dilation_1 = self.dilations

    def _biases(self):
        return [self.rpb0, self.rpb1]


class DilateAttention(nn.Module):
    def __init__(self, attn_drop):
        super().__init__()
        self.attn_drop = nn.Dropout(attn_drop)


class MultiDilatelocalAttention(nn.Module):
    """As DilateFormer has it."""

    def __init__(self, dim, heads, kernel_size, dilation, attn_drop=0.0):
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = heads, kernel_size, dilation
        self.scale = (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)
        self.dilate_attention = nn.ModuleList(DilateAttention(attn_drop) for _ in dilation)

    def forward(self, x):
        batch, height, width, dim = x.shape
        groups, heads = len(self.dilation), self.num_heads // len(self.dilation)
        qkv = self.qkv(x.permute(0, 3, 1, 2)).view(batch, 3, groups, dim // groups, height, width)
        outs = []
        for group, step in enumerate(self.dilation):
            query, key, value = qkv[:, :, group].unbind(1)
            query = query.reshape(batch, heads, -1, 1, height * width)
            reach = step * (self.kernel_size // 2)
            key, value = (
                nn.functional.unfold(t, self.kernel_size, step, reach).view(
                    batch, heads, -1, self.kernel_size**2, height * width
                )
                for t in (key, value)
            )
            weights = ((query * key).sum(2, keepdim=True) * self.scale).softmax(3)
            weights = self.dilate_attention[group].attn_drop(weights)
            outs.append((weights * value).sum(3).flatten(1, 2))
        return self.proj(torch.cat(outs, 1).transpose(1, 2).view(x.shape))


MODULES = {
    "DiNAT": lambda: NeighborhoodAttention(16, 4, 3, 2),
    "allin1": lambda: NeighborhoodAttention1d(16, 4, 3, 2),
    "NATTEN": lambda: NeighborhoodAttention2D(16, 4, 5, 1),
    "AgileFormer": lambda: PaddedAttention(16, 4, 3, 3),
    "StyleNAT": lambda: HydraNeighborhoodAttention(16, 8, (5, 3, 3), (1, 1, 2)),
    "StyleNAT's first": lambda: NeighborhoodAttentionSplitHead(16, 4, (3, 3), (2, 1)),
    "DilateFormer": lambda: MultiDilatelocalAttention(16, 4, 3, [1, 3]),
}


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention, self.norm = attention, nn.LayerNorm(16)
        self.of_rows = isinstance(attention, NeighborhoodAttention1d)
        self.channels_first = isinstance(attention, PaddedAttention)

    def forward(self, x):
        out = self.norm(x)
        if self.of_rows:
            out = out.flatten(0, 1)
        if self.channels_first:
            out = out.movedim(-1, 1)
        out = self.attention(out)
        if isinstance(out, tuple):
            out = out[0]
        if self.channels_first:
            out = out.movedim(1, -1)
        return x + out.view(x.shape)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_results_parameters_and_keys_stay(make):
    torch.manual_seed(0)
    model = nn.Sequential(Block(make()), Block(make()))
    x = torch.randn(2, 8, 9, 16)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    before, parameters = model.state_dict(), dict(model.named_parameters())

    done = sdwa.swap(model)
    kind = type(make())
    assert done.replaced == {
        f"{n}.attention": f"{kind.__module__}.{kind.__qualname__}" for n in (0, 1)
    }
    assert done.left == {}
    assert type(model[0].attention).__module__.startswith("sdwa.")
    out = model(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert {n: id(p) for n, p in model.named_parameters()} == {
        n: id(p) for n, p in parameters.items()
    }
    model.zero_grad()
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)
    model.load_state_dict(before)
    nn.Sequential(Block(make()), Block(make())).load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", (NeighborhoodAttention, NeighborhoodAttention1d))
def test_weights_are_returned_where_they_are_asked_for(kind):
    torch.manual_seed(0)
    original = kind(16, 4, 3, 2).eval()
    x = torch.randn(1, *(7, 8)[-kind.dims :], 16)
    expected = original(x, output_attentions=True)
    holder = nn.ModuleList([original])
    sdwa.swap(holder)
    found = holder[0](x, output_attentions=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_of_weights_stays():
    torch.manual_seed(0)
    original = NeighborhoodAttention(16, 4, 3, 1, dropout=0.5).train()
    x = torch.randn(1, 7, 8, 16)
    torch.manual_seed(1)
    expected = original(x, output_attentions=True)
    holder = nn.ModuleList([original])
    sdwa.swap(holder)
    torch.manual_seed(1)
    found = holder[0](x, output_attentions=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_of_weights_stays_in_stylenat():
    torch.manual_seed(0)
    x = torch.randn(1, 7, 8, 16)
    original = HydraNeighborhoodAttention(16, 8, (3, 3, 3), (1, 1, 2), attn_drop=0.5).train()
    torch.manual_seed(1)
    expected = original(x)
    holder = nn.ModuleList([original])
    sdwa.swap(holder)
    torch.manual_seed(1)
    torch.testing.assert_close(holder[0](x), expected, rtol=1e-4, atol=1e-5)


def test_swapped_dilateformer_is_traced_as_before():
    model, x = nn.Sequential(MultiDilatelocalAttention(16, 4, 3, [1, 2])), torch.randn(2, 5, 6, 16)
    torch.fx.symbolic_trace(model)
    sdwa.swap(model)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_dropout_of_weights_stays_in_dilateformer():
    torch.manual_seed(0)
    x = torch.randn(1, 7, 8, 16)
    holder = nn.ModuleList([MultiDilatelocalAttention(16, 4, 3, [1, 2], attn_drop=0.5)]).train()
    sdwa.swap(holder)
    fused = holder[0]
    assert not torch.allclose(fused(x), fused(x))
    kept = fused.eval()(x)
    torch.testing.assert_close(kept, fused(x))
    for each in fused.train().dilate_attention:
        each.attn_drop.p = 1e-12  # drops nothing, the same way
    torch.testing.assert_close(fused(x), kept, rtol=1e-4, atol=1e-5)


def test_each_dilation_of_dilateformer_drops_at_its_own_rate():
    torch.manual_seed(0)
    model, x = (
        nn.ModuleList([MultiDilatelocalAttention(16, 4, 3, [1, 2])]),
        torch.randn(1, 7, 8, 16),
    )
    model[0].dilate_attention[1].attn_drop.p = 0.5
    sdwa.swap(model)
    model[0].proj = nn.Identity()  # the heads stay apart
    kept = model.eval()[0](x)
    first, second = (model.train()[0](x) - kept).abs().amax((0, 1, 2)).split(8)
    assert first.max() < 1e-5 and second.min() > 1e-3
    model[0].dilate_attention[1].eval()
    torch.testing.assert_close(model[0](x), kept, rtol=1e-4, atol=1e-5)


def test_a_dropout_of_weights_of_another_class_is_left():
    model = nn.ModuleList([dilate(), dilate()])
    model[0].dilate_attention[1].attn_drop = nn.AlphaDropout(0.5)
    done = sdwa.swap(model)
    reason = "weights are dropped by torch.nn.modules.dropout.AlphaDropout"
    assert list(done.replaced) == ["1"]
    assert done.reasons == {"0": f"it cannot be tried: TypeError: {reason}"}


def test_what_is_set_outside_decides_nothing():
    for outside in (torch.autocast("cpu", torch.bfloat16), default_dtype(torch.float64)):
        model = nn.ModuleList([dilate()])
        with outside:
            assert list(sdwa.swap(model).replaced) == ["0"]


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


def test_what_is_called_as_natten_s_and_is_another_is_left():
    other = type(
        "NeighborhoodAttention2D", (NeighborhoodAttention2D,), {"__module__": "models.own"}
    )
    model = nn.ModuleList([other(16, 4, 3, 1), NeighborhoodAttention2D(16, 4, 3, 1)])
    done = sdwa.swap(model)
    assert list(done.replaced) == ["1"]
    assert done.left == {"0": "models.own.NeighborhoodAttention2D"}


class WindowAttention(nn.Module):
    """As Swin has it, more or less: not known."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)


class AttentionModule(Block):
    """As transformers wraps attention: it has a part that is known."""


def test_what_holds_a_known_module_is_not_left():
    done = sdwa.swap(nn.ModuleList([AttentionModule(NeighborhoodAttention(16, 4, 3, 1))]))
    assert (list(done.replaced), done.left) == (["0.attention"], {})


def test_what_is_not_known_is_left_and_named():
    model = nn.ModuleDict({"a": WindowAttention(), "b": Block(NeighborhoodAttention(16, 4, 3, 1))})
    done = sdwa.swap(model)
    assert done.left == {"a": f"{WindowAttention.__module__}.WindowAttention"}
    assert str(done).splitlines() == [
        f"replaced b.attention: {NeighborhoodAttention.__module__}.NeighborhoodAttention",
        f"left a: {WindowAttention.__module__}.WindowAttention",
    ]


@pytest.mark.parametrize(
    "model, kind, message",
    [
        (
            nn.Linear(2, 2),
            ValueError,
            "must contain a module that is known: AgileFormer's .*DilateFormer's .*DiNAT",
        ),
        (nn.ModuleList([WindowAttention()]), ValueError, "left: .*WindowAttention"),
        (NeighborhoodAttention(16, 4, 3, 1), ValueError, "got one itself .*ModuleList"),
        ("model", TypeError, "model must be a torch.nn.Module, got str"),
    ],
    ids=["nothing", "nothing known", "itself", "no module"],
)
def test_refused(model, kind, message):
    with pytest.raises(kind, match=message):
        sdwa.swap(model)


def test_what_is_fused_already_is_counted():
    model = nn.ModuleList([NeighborhoodAttention(16, 4, 3, 1) for _ in range(2)])
    sdwa.swap(model)
    fused = list(model)
    done = sdwa.swap(model)
    assert done == Swapped(fused=2)
    assert str(done) == "2 modules are fused already"
    assert list(model) == fused
    model.append(NeighborhoodAttention(16, 4, 3, 1))
    done = sdwa.swap(model)
    assert (list(done.replaced), done.fused) == (["2"], 2)


@pytest.mark.parametrize(
    "layer",
    [
        sdwa.natten.NeighborhoodAttention2D(16, 4, 3),
        sdwa.SlidingDilatedWindowAttention(16, 4, 3, 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_ours_are_fused_already(layer):
    for model in (layer, nn.ModuleList([layer])):
        assert str(sdwa.swap(model)) == "1 module is fused already"


def dilate():
    return MultiDilatelocalAttention(24, 4, 3, [1, 2])


def watch(module):
    module.register_forward_hook(lambda *_: None)


def watch_gradients(module):
    module.register_full_backward_hook(lambda *_: None)


def watch_saving(module):
    module.register_state_dict_pre_hook(lambda *_: None)


def watch_loading(module):
    module.register_load_state_dict_post_hook(lambda *_: None)


def wrap(module):
    module.forward = module.forward


def prune_bias(module):
    prune.l1_unstructured(module, "rpb", 0.5)


@pytest.mark.parametrize(
    "change", [watch, watch_gradients, watch_saving, watch_loading, wrap, prune_bias]
)
def test_modules_with_hooks_are_left(change):
    model = nn.ModuleList([NeighborhoodAttention(16, 4, 3, 1) for _ in range(2)])
    change(model[0])
    original = model[0]
    done = sdwa.swap(model)
    assert (list(done.replaced), done.reasons) == (
        ["1"],
        {"0": "it has hooks: swap before they are registered"},
    )
    assert model[0] is original


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: NeighborhoodAttention(16, 4, 3, 1), "dropout"),
        (lambda: HydraNeighborhoodAttention(16, 8, (3, 3), (1, 2)), "attn_drop"),
        (lambda: MultiDilatelocalAttention(16, 4, 3, [1, 2]), "dilate_attention.1.attn_drop"),
        (lambda: MultiDilatelocalAttention(16, 4, 3, [1, 2]), "dilate_attention.0"),
    ],
)
@pytest.mark.parametrize("change", [watch, watch_gradients, wrap])
def test_modules_with_hooks_of_a_part_that_is_not_called_are_left(make, part, change):
    """As attention weights are captured behind their dropout."""
    model = nn.ModuleList([make() for _ in range(2)])
    change(model[0].get_submodule(part))
    done = sdwa.swap(model)
    assert list(done.replaced) == ["1"]
    assert done.reasons == {"0": f"its {part} has hooks, and would not be called"}


class Adapted(nn.Module):
    """As low-rank adapters wrap a layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.low = nn.Conv2d(base.in_channels, base.out_channels, 1)

    weight, bias = property(lambda self: self.base.weight), property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + self.low(x)


def prune_qkv(model):
    prune.l1_unstructured(model[0].qkv, "weight", 0.5)


def adapt_qkv(model):
    model[0].qkv = Adapted(model[0].qkv)


@pytest.mark.parametrize("change", [prune_qkv, adapt_qkv])
def test_parts_are_called_as_they_are(change):
    torch.manual_seed(0)
    model, x, calls = nn.Sequential(dilate()), torch.randn(1, 5, 6, 24), []
    original = copy.deepcopy(model)
    sdwa.swap(model)
    for each in (original, model):
        change(each)
        each[0].qkv.register_forward_hook(lambda *_: calls.append(1))
    model.load_state_dict(original.state_dict())
    for _ in range(2):
        expected, found = original(x), model(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for each, out in ((original, expected), (model, found)):
            out.square().sum().backward()
            torch.optim.SGD(each.parameters(), 0.01).step()
    assert len(calls) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: NeighborhoodAttention(16, 4, 3, 1, dropout=0.5),
        lambda: HydraNeighborhoodAttention(16, 8, (3, 3), (1, 2), attn_drop=0.5),
        lambda: MultiDilatelocalAttention(16, 4, 3, [1, 2], attn_drop=0.5),
    ],
    ids=["DiNAT", "StyleNAT", "DilateFormer"],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_dropout_alone_in_training_mode(make, when):
    """As samples are drawn for an estimate of uncertainty."""
    torch.manual_seed(0)
    model, x = nn.ModuleList([make()]).eval(), torch.randn(1, 7, 8, 16)
    if when == "after":
        sdwa.swap(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    if when == "before":
        sdwa.swap(model)
    assert not model[0].training
    one, other = (model[0](x) for _ in range(2))
    one, other = (out[0] if isinstance(out, tuple) else out for out in (one, other))
    assert not torch.allclose(one, other)


def test_a_window_without_dilation():
    """transformers' NAT"""
    torch.manual_seed(0)
    model, x = nn.ModuleList([NeighborhoodAttention(16, 4, 3, 1)]), torch.randn(1, 7, 8, 16)
    (expected,) = model[0](x)
    del model[0].dilation
    sdwa.swap(model)
    torch.testing.assert_close(model[0](x)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_shared_module_stays_shared():
    shared = dilate()
    model = nn.Sequential(shared, nn.LayerNorm(24), shared, nn.Sequential(shared))
    done = sdwa.swap(model)
    assert list(done.replaced) == ["0", "2", "3.0"]
    assert model[0] is model[2] is model[3][0]
