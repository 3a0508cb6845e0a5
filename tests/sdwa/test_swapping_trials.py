"""Classes of a known name that compute something else: `sdwa.swap` tries them, and leaves them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import sdwa
from sdwa import natten
from tests.sdwa.test_swapping import (
    HydraNeighborhoodAttention,
    MultiDilatelocalAttention,
    NeighborhoodAttention,
    NeighborhoodAttention1d,
    NeighborhoodAttentionSplitHead,
    dilate,
)


class ChannelsFirst(MultiDilatelocalAttention):
    """As forks of YOLO have it."""

    __qualname__ = "MultiDilatelocalAttention"

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Interleaved(MultiDilatelocalAttention):
    """Another order of the dilations."""

    __qualname__ = "MultiDilatelocalAttention"

    def forward(self, x):
        self.dilation = self.dilation[::-1]
        out = super().forward(x)
        self.dilation = self.dilation[::-1]
        return out


class WithPositions(MultiDilatelocalAttention):
    """With a part more."""

    __qualname__ = "MultiDilatelocalAttention"

    def __init__(self, *args):
        super().__init__(*args)
        self.lepe = nn.Conv2d(24, 24, 3, padding=1)

    def forward(self, x):
        return super().forward(x) + self.lepe(x.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize(
    "kind, reason",
    [
        (ChannelsFirst, "it cannot be tried: RuntimeError: "),
        (Interleaved, "it computes something else than the class that is known"),
        (WithPositions, "its parameters are not those of the class that is known"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_classes_of_a_known_name_are_left(kind, reason, device):
    model = nn.ModuleList([kind(24, 4, 3, [1, 2]), dilate()]).to(device)
    random, original = torch.get_rng_state(), model[0]
    done = sdwa.swap(model)
    assert (list(done.replaced), list(done.left)) == (["1"], ["0"])
    assert model[0] is original
    assert done.reasons["0"].startswith(reason)
    assert f"left 0: {done.left['0']} ({reason}" in str(done)
    assert torch.equal(random, torch.get_rng_state())
    with pytest.raises(ValueError, match=f"left: .*{reason}"):
        sdwa.swap(nn.ModuleList([kind(24, 4, 3, [1, 2])]))


def cosine(query, key, *others):
    return natten.natten2dqkrpb(normalize(query, dim=-1), normalize(key, dim=-1), *others)


def cosine_of_lines(query, key, *others):
    return natten.natten1dqkrpb(normalize(query, dim=-1), normalize(key, dim=-1), *others)


class Gated(HydraNeighborhoodAttention):
    __qualname__ = "HydraNeighborhoodAttention"

    def forward(self, x):
        return super().forward(x) * x.sigmoid()


class GatedSplitHead(NeighborhoodAttentionSplitHead):
    __qualname__ = "NeighborhoodAttentionSplitHead"

    def forward(self, x):
        return super().forward(x) * x.sigmoid()


def with_products(kind, products):
    """A copy of the class with other inner products."""
    return type(kind.__name__, (kind,), {"nattendqkrpb": staticmethod(products)})


@pytest.mark.parametrize(
    "module",
    [
        with_products(NeighborhoodAttention, cosine)(16, 2, 3, 20),
        with_products(NeighborhoodAttention1d, cosine_of_lines)(16, 2, 3, 20),
        Gated(16, 4, [3, 5], [20, 1]),
        GatedSplitHead(16, 4, [3, 5], [1, 20]),
    ],
    ids=lambda module: type(module).__name__,
)
def test_copies_with_other_arithmetic_are_left(module):
    with pytest.raises(ValueError, match="it computes something else than the class that is known"):
        sdwa.swap(nn.ModuleList([module]))


def lacks_its_library(*_):
    raise ImportError("natten is not installed")


def test_what_cannot_run_for_want_of_its_library_is_replaced():
    kind = with_products(NeighborhoodAttention, lacks_its_library)
    model = nn.ModuleList([kind(16, 2, 3, 2)])
    assert list(sdwa.swap(model).replaced) == ["0"]


@pytest.mark.parametrize("kind", [NeighborhoodAttention, MultiDilatelocalAttention])
def test_what_was_compiled_alone_is_left(kind):
    """What `torch.compile` gives calls what it was given for good."""
    dilation = 2 if kind is NeighborhoodAttention else [1, 2]
    compiled = torch.compile(kind(16, 4, 3, dilation))
    model = nn.ModuleList([compiled, kind(16, 4, 3, dilation)])
    done = sdwa.swap(model)
    assert list(done.replaced) == ["1"]
    assert done.reasons == {"0._orig_mod": "it is compiled: swap first, then compile"}
    assert type(compiled._orig_mod) is kind
    # of a model that was compiled as a whole, parts are called by their names
    assert sdwa.swap(torch.compile(nn.ModuleList([kind(16, 4, 3, dilation)]))).replaced
