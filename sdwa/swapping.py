"""Replaces the attention modules of known libraries by fused ones, with their weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from sdwa import natten, natten_windows
from sdwa.functional import attention_weights, sliding_dilated_window_attention
from sdwa.modules import attend_with_dropout, unit_stride
from sdwa.torch_private import CALL_HOOKS, HOOKS, has_hooks, trace_paused

# `modules` has done so for its own names alone.
torch.fx.wrap("attend_with_dropout")
torch.fx.wrap("unit_stride")


@dataclass(frozen=True)
class Swapped:
    """What `swap` did.

    Attributes:
        replaced: the class that was there, by the name of each module that was replaced.
        left: the same of modules that look like attention and were left.
        reasons: why, by the name of those that were left though a class of this name is known.
        fused: number of modules that were fused already, as those of `sdwa.natten` are.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    fused: int = 0

    def __str__(self) -> str:
        lines = [f"replaced {name}: {kind}" for name, kind in self.replaced.items()]
        lines += [f"left {name}: {self.why_left(name)}" for name in self.left]
        if self.fused:
            are = "module is" if self.fused == 1 else "modules are"
            lines.append(f"{self.fused} {are} fused already")
        return "\n".join(lines)

    def why_left(self, name: str) -> str:
        """The class of a module that was left, and the reason where there is one."""
        return self.left[name] + (f" ({self.reasons[name]})" if name in self.reasons else "")


def swap(model: nn.Module) -> Swapped:
    """Replaces the attention modules of known libraries within a model by fused ones.

    Known are neighborhood attention of transformers' NAT and DiNAT models, also as the backbone of
    OneFormer, of allin1, StyleNAT and AgileFormer; NATTEN's layers, `NeighborhoodAttention1D` and
    `2D`; and DilateFormer's `MultiDilatelocalAttention`.

    A replacement has the parts of what it replaces, the same objects under the same names: an
    optimizer goes on, state dicts fit both, and hooks of the projections and of the dropout behind
    them are called. Where it must drop attention weights, or is asked to return them, it computes
    them all, as the original does; else there are none, and their dropout is not called.

    Left is what would not stay the same: a module with hooks of its own, or of a part that is not
    called any more; with parameters that are computed from others (pruning), or with parameters
    that the known class lacks; and one that `torch.compile` was given alone, which calls it by
    itself. Many repositories have a class of a known name that computes something else: each is
    tried on a small map first, with random parameters, where it can run. NATTEN's and AgileFormer's
    are known by the module that defines them instead. What the model keeps of its parts outside
    PyTorch's registers, such as a plain list of them, still has the originals.

    Args:
        model: changed in place, or not at all where an error is raised.

    Returns:
        What was replaced, and what was left; nothing where all that is known is fused already.

    Raises:
        TypeError: model is not a module.
        ValueError: there is nothing known in it, or it is itself a module to be replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    known = "; ".join(sorted({str(each.described) for each in _KNOWN}))
    if _known(model) is not None:
        raise ValueError(
            f"model must contain the modules to replace, got one itself ({_name(model)}): put it "
            "into a torch.nn.ModuleList"
        )
    done = Swapped(fused=sum(map(_is_ours, model.modules())))
    fused: dict[nn.Module, nn.Module | str] = {}  # or why it is left; one that is shared stays so
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for prefix, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is None:
                continue
            path = f"{prefix}.{name}" if prefix else name
            known_class = _known(child)
            instead: nn.Module | str | None
            if known_class is not None and _is_compiled(parent):
                instead = "it is compiled: swap first, then compile"
            else:
                if known_class is not None and child not in fused:
                    fused[child] = _replacement(known_class, child)
                instead = fused.get(child)
            if isinstance(instead, nn.Module):
                places.append((parent, name, instead))
                done.replaced[path] = _name(child)
            elif instead is not None:
                done.left[path], done.reasons[path] = _name(child), instead
            elif _looks_like_attention(child, done, path):
                done.left[path] = _name(child)
    for path in [p for p in done.left if any(r.startswith(f"{p}.") for r in done.replaced)]:
        del done.left[path]  # what it does is in the part that was replaced
    for parent, name, instead in places:
        parent._modules[name] = instead
    if not (done.replaced or done.fused):
        kinds = sorted(set(map(done.why_left, done.left)))
        left = f"; left: {', '.join(kinds)}" if kinds else ""
        raise ValueError(f"model must contain a module that is known: {known}{left}")
    return done


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _looks_like_attention(module: nn.Module, done: Swapped, path: str) -> bool:
    """Whether its class is called so, and it is not fused or part of one that has been listed."""
    if _is_ours(module) or any(
        path.startswith(f"{listed}.") for listed in (*done.replaced, *done.left)
    ):
        return False
    kind = type(module).__qualname__.lower()
    return "attention" in kind and any(
        isinstance(m, nn.Linear | nn.Conv2d) for m in module.modules()
    )


class FusedDinat(nn.Module):
    """`NeighborhoodAttention` of transformers' NAT and DiNAT, and allin1's, of sequences too.

    Args:
        module: whose parts are taken.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.num_attention_heads = module.num_attention_heads
        self.attention_head_size = module.attention_head_size
        self.all_head_size = module.all_head_size
        self.kernel_size = module.kernel_size
        self.dilation = getattr(module, "dilation", 1)  # NAT has none
        self.rpb = module.rpb
        self.query, self.key, self.value = module.query, module.key, module.value
        self.dropout = module.dropout

    def forward(
        self, hidden_states: Tensor, output_attentions: bool | None = False
    ) -> tuple[Tensor, ...]:
        """(batch, [height,] length, dim) -> the same, and the attention weights if asked for."""
        heads = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            part(hidden_states).view(hidden_states.shape[:-1] + heads)
            for part in (self.query, self.key, self.value)
        )
        dims = self.rpb.dim() - 1
        windows = natten_windows.Windows.of(dims, self.kernel_size, self.dilation, False)
        with trace_paused():
            windows.check_fits(hidden_states.shape[1:-1])
        if natten_windows.drops(self.dropout):
            out, weights = windows.attend_and_drop(
                query, key, value, self.rpb, heads[1] ** -0.5, self.dropout
            )
            return (out.flatten(-2), weights) if output_attentions else (out.flatten(-2),)
        out = windows.attend(query, key, value, self.rpb, None, None, None).flatten(-2)
        if not output_attentions:
            return (out,)
        weights = attention_weights(
            query, key, self.kernel_size, self.dilation, bias=self.rpb, padding_mode="shifted"
        )
        return out, weights.flatten(-dims).movedim(-2, 1).to(out.dtype)


class FusedHydra(nn.Module):
    """StyleNAT's `HydraNeighborhoodAttention`, and its older `NeighborhoodAttentionSplitHead`.

    Groups of heads have a kernel size, a dilation and a bias each.

    Args:
        module: whose parts are taken.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.num_heads = module.num_heads
        self.scale = module.scale
        if hasattr(module, "rpb"):
            self.rpb = module.rpb
            self.windows = tuple(zip(module.kernel_sizes, module.dilations, strict=True))
        else:
            self.rpb0, self.rpb1 = module.rpb0, module.rpb1
            self.windows = (
                (module.kernel_size_0, module.dilation_0),
                (module.kernel_size_1, module.dilation_1),
            )
        self.qkv, self.attn_drop = module.qkv, module.attn_drop
        self.proj, self.proj_drop = module.proj, module.proj_drop

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> the same."""
        qkv = self.qkv(x)
        heads = (3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))
        query, key, value = qkv.view(x.shape[:-1] + heads).unbind(-3)
        biases = tuple(self.rpb) if hasattr(self, "rpb") else (self.rpb0, self.rpb1)
        drops = natten_windows.drops(self.attn_drop)
        # Neighbouring groups of one kernel size take one call, where they need no weights.
        numbers = groupby(range(len(biases)), lambda n: n if drops else self.windows[n][0])
        first, outs = 0, []
        for together in (list(same) for _, same in numbers):
            bias = torch.cat([biases[n] for n in together])
            q, k, v = (t.narrow(-2, first, len(bias)) for t in (query, key, value))
            first += len(bias)
            for n in together:
                windows = natten_windows.Windows.of(2, *self.windows[n], False)
                with trace_paused():
                    windows.check_fits(x.shape[1:3])
            if drops:
                out, _ = windows.attend_and_drop(q, k, v, bias, self.scale, self.attn_drop)
            else:
                steps = tuple(self.windows[n][1] for n in together for _ in range(len(biases[n])))
                out = sliding_dilated_window_attention(
                    *(q, k, v, windows.kernel_size, steps),
                    bias=bias,
                    scale=self.scale,
                    padding_mode="shifted",
                )
            outs.append(out)
        return self.proj_drop(self.proj(torch.cat(outs, -2).flatten(-2)))  # type: ignore[no-any-return]


class FusedDilate(nn.Module):
    """`MultiDilatelocalAttention` of DilateFormer.

    Args:
        module: whose parts are taken.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.num_heads = module.num_heads
        self.kernel_size = module.kernel_size
        self.dilation = tuple(module.dilation)
        self.scale = module.scale
        self.qkv, self.proj, self.proj_drop = module.qkv, module.proj, module.proj_drop
        self.dilate_attention: Any = getattr(module, "dilate_attention", ())
        for each in self.dilate_attention:
            if type(each.attn_drop) not in (nn.Dropout, nn.Identity):
                raise TypeError(f"weights are dropped by {_name(each.attn_drop)}")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> the same."""
        qkv = unit_stride(self.qkv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        heads = (3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))
        query, key, value = qkv.view(x.shape[:-1] + heads).unbind(-3)
        drops = [each.attn_drop for each in self.dilate_attention]
        rates = [d.p if isinstance(d, nn.Dropout) and d.training else 0.0 for d in drops]
        share = self.num_heads // len(self.dilation)
        if any(rates):
            outs = []
            for n, (step, rate) in enumerate(zip(self.dilation, rates, strict=True)):
                q, k, v = (t.narrow(-2, n * share, share) for t in (query, key, value))
                outs.append(
                    attend_with_dropout(
                        *(q, k, v, self.kernel_size, step, None, self.scale),
                        padding_mode="zeros",
                        key_mask=None,
                        is_causal=False,
                        dropout=rate,
                    )
                )
            attended = torch.cat(outs, -2)
        else:
            dilation = tuple(step for step in self.dilation for _ in range(share))
            attended = sliding_dilated_window_attention(
                query, key, value, self.kernel_size, dilation, scale=self.scale
            )
        return self.proj_drop(self.proj(attended.flatten(-2)))  # type: ignore[no-any-return]


class FusedAgile(natten.NeighborhoodAttention2D):
    """AgileFormer's `NeighborhoodAttention2D`, of maps with channels first.

    As NATTEN's layers did up to 0.15, it pads maps that are smaller than a window.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """(batch, dim, height, width) -> the same, and twice None."""
        x = x.movedim(1, -1)
        height, width = x.shape[1:3]
        below, right = (
            max(0, size * step - length)
            for size, step, length in zip(
                self.kernel_size, self.dilation, (height, width), strict=True
            )
        )
        out = super().forward(nn.functional.pad(x, (0, 0, 0, right, 0, below)))
        return out[:, :height, :width].movedim(-1, 1), None, None


def _fused_natten(module: Any) -> nn.Module:
    """NATTEN's own layer as that of `sdwa.natten`, with the same parts."""
    return _with_parts_of(module, getattr(natten, type(module).__qualname__))


def _fused_agile(module: Any) -> nn.Module:
    return _with_parts_of(module, FusedAgile)


def _with_parts_of(module: Any, kind: Any) -> nn.Module:
    with torch.device("meta"):
        fused = kind(
            module.num_heads * module.head_dim,
            module.num_heads,
            module.kernel_size,
            module.dilation,
            getattr(module, "is_causal", False),
            qk_scale=module.scale,
            attn_drop=module.attn_drop.p,
        )
    fused.qkv, fused.rpb, fused.attn_drop = module.qkv, module.rpb, module.attn_drop
    fused.proj, fused.proj_drop = module.proj, module.proj_drop
    return fused  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Known:
    """A class, known by its name and what it has: copies of it lie in many repositories.

    Where a name is in use for classes that do other things with the same parts, by `module` too, a
    regular expression for the module it is defined in, or by what it makes of an input.

    Attributes:
        example: the shape of an input that is as small as can be; None: it is not tried.
        nearer: reduces the dilations of a module, for a quicker trial.
        needs_trial: whether it is left where it cannot be tried. Most cannot where the library that
            they call is missing, and are wanted fused for that.
    """

    described: str
    name: str
    has: tuple[str, ...]
    make: Callable[[Any], nn.Module]
    module: str = ""
    example: Callable[[Any], tuple[int, ...]] | None = None
    nearer: Callable[[Any], None] | None = None
    needs_trial: bool = False


def _dinat_map(module: Any) -> tuple[int, ...]:
    least = module.kernel_size * getattr(module, "dilation", 1)
    return (1, *(least, least + 1)[: module.rpb.dim() - 1], module.query.in_features)


def _dinat_nearer(module: Any) -> None:
    module.dilation = min(getattr(module, "dilation", 1), 2)


def _hydra_map(module: Any) -> tuple[int, ...]:
    if hasattr(module, "rpb"):
        windows = zip(module.kernel_sizes, module.dilations, strict=True)
        least = max(size * step for size, step in windows)
    else:
        least = max(
            module.kernel_size_0 * module.dilation_0, module.kernel_size_1 * module.dilation_1
        )
    return (1, least, least + 1, module.qkv.in_features)


def _hydra_nearer(module: Any) -> None:
    if hasattr(module, "rpb"):
        module.dilations = [min(step, 2) for step in module.dilations]
    else:
        module.dilation_0, module.dilation_1 = min(module.dilation_0, 2), min(module.dilation_1, 2)


_DINAT = ("num_attention_heads", "attention_head_size", "rpb", "query", "key", "value", "dropout")
_NATTEN = ("qkv", "rpb", "proj", "proj_drop", "kernel_size", "dilation", "attn_drop", "num_heads")
_HYDRA = ("qkv", "proj", "proj_drop", "attn_drop", "num_heads", "scale")

_KNOWN = (
    _Known(
        "transformers' NAT and DiNAT (NeighborhoodAttention)",
        "NeighborhoodAttention",
        _DINAT,
        FusedDinat,
        example=_dinat_map,
        nearer=_dinat_nearer,
    ),
    *(
        _Known(
            f"allin1's {name}",
            name,
            (*_DINAT, "nattendqkrpb"),
            FusedDinat,
            example=_dinat_map,
            nearer=_dinat_nearer,
        )
        for name in ("NeighborhoodAttention1d", "NeighborhoodAttention2d")
    ),
    *(
        _Known(f"NATTEN's {name}", name, (*_NATTEN, "is_causal"), _fused_natten, r"^natten\.")
        for name in ("NeighborhoodAttention1D", "NeighborhoodAttention2D")
    ),
    _Known(
        "AgileFormer's NeighborhoodAttention2D",
        "NeighborhoodAttention2D",
        (*_NATTEN, "window_size"),
        _fused_agile,
        r"(^|\.)nat_2d$",
    ),
    _Known(
        "StyleNAT's HydraNeighborhoodAttention",
        "HydraNeighborhoodAttention",
        (*_HYDRA, "rpb", "kernel_sizes", "dilations"),
        FusedHydra,
        example=_hydra_map,
        nearer=_hydra_nearer,
    ),
    _Known(
        "StyleNAT's NeighborhoodAttentionSplitHead",
        "NeighborhoodAttentionSplitHead",
        (*_HYDRA, "rpb0", "rpb1", "kernel_size_0", "kernel_size_1", "dilation_0", "dilation_1"),
        FusedHydra,
        example=_hydra_map,
        nearer=_hydra_nearer,
    ),
    _Known(
        "DilateFormer's MultiDilatelocalAttention",
        "MultiDilatelocalAttention",
        ("qkv", "proj", "proj_drop", "dilation", "kernel_size", "num_heads", "scale"),
        FusedDilate,
        example=lambda module: (1, 5, 6, module.proj.in_features),
        needs_trial=True,
    ),
)


def _is_ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("sdwa.")


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is what `torch.compile` made of another, whose `forward` it calls for good."""
    kind = type(module)
    return kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")


def _known(module: nn.Module) -> _Known | None:
    """The known class that it is named after."""
    if _is_ours(module):
        return None
    kind = type(module)
    for known in _KNOWN:
        if (
            kind.__qualname__ == known.name
            and re.search(known.module, kind.__module__)
            and all(hasattr(module, name) for name in known.has)
        ):
            return known
    return None


# Parts that the fused modules call each time.
_CALLED = ("qkv", "query", "key", "value", "proj", "proj_drop")


def _replacement(known: _Known, module: nn.Module) -> nn.Module | str:
    """The fused module, or why there is none."""
    if has_hooks(module):
        return "it has hooks: swap before they are registered"
    for name, part in module.named_modules():
        if name.split(".")[0] not in (*_CALLED, "") and has_hooks(part, CALL_HOOKS):
            return f"its {name} has hooks, and would not be called"
    try:
        fused = known.make(module)
        if fused.state_dict().keys() != module.state_dict().keys():
            return "its parameters are not those of the class that is known"
        if known.example is not None and not _agree(known, module):
            return "it computes something else than the class that is known"
    except Exception as error:  # of a class that is not ours
        return f"it cannot be tried: {type(error).__name__}: {error}".splitlines()[0]
    fused.training = module.training  # its parts are in the modes they were in
    return fused


def _agree(known: _Known, module: nn.Module) -> bool:
    """Whether both make the same of a random map, with random parameters.

    Where the module cannot run and need not be tried, it is taken for what its name says.
    """
    has_run = False
    # Quickly, and else as it is: it may hold its dilation elsewhere.
    for nearer in dict.fromkeys((known.nearer, None)):
        with torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            try:
                original, x = _copy_to_try(known, module, nearer)
                expected = _first(original(x))
            except Exception:
                if known.needs_trial:
                    raise
                continue
            has_run = True
            found = _first(known.make(original).eval()(x))
        if found.shape == expected.shape and torch.allclose(found, expected, 1e-3, 1e-3):
            return True
    return not has_run


def _copy_to_try(
    known: _Known, module: nn.Module, nearer: Callable[[Any], None] | None
) -> tuple[nn.Module, Tensor]:
    """A copy and an input.

    In the copy nothing is counted, dropped or given to somebody's hooks, whatever dtype is set.
    """
    assert known.example is not None
    generator = torch.Generator().manual_seed(0)
    copied = copy.deepcopy(module).eval()
    on_meta = any(p.is_meta for p in copied.parameters())
    (copied.to_empty(device="cpu") if on_meta else copied.cpu()).float()
    for part in copied.modules():
        for hooks in HOOKS:
            getattr(part, hooks).clear()
    if nearer is not None:
        nearer(copied)

    def randn(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    for parameter in copied.parameters():
        inputs = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.copy_(randn(parameter.shape) * inputs**-0.5)
    return copied, randn(known.example(copied))


def _first(results: Any) -> Tensor:
    """The map, of a module that may return more."""
    result: Tensor = results[0] if isinstance(results, tuple) else results
    return result
