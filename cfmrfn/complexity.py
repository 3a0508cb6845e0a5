"""Parameters, multiply-accumulates and activation memory: `python -m cfmrfn.complexity`.

Nothing is computed: the network runs on shapes alone (fake tensors), so any batch size fits any
machine. Terms:

- stored parameters are in a checkpoint; trainable ones have gradients enabled; executed ones are
  read on the way to logits and landmarks, which leaves out IR-50's embedding layer.
- a multiply-accumulate (MAC) is two FLOPs. Counted are convolutions, matrix products and attention,
  as `torch.utils.flop_counter` does; sdwa brings the formula for its operator.
- activations are what the forward pass of training keeps for the backward pass, in float32.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cfmrfn import errors
from cfmrfn.config import NetworkConfig, parse
from cfmrfn.models import CFMRFN
from cfmrfn.process import command

# Row of the table -> the modules and parameters in it, matched as a whole; indented rows are part
# of the one above.
PARTS = {
    "expression backbone": r"image_backbone",
    "  embedding layer, never run": r"image_backbone\.output_layer",
    "image tokens": r"image_embed",
    "positions": r"position",
    "landmark backbone": r"landmark_backbone\.\w+",
    "encoder layers": r"layers\.\d+",
    "  attention": r"layers\.\d+\.blocks\.\d+\.attention",
    "  MLP": r"layers\.\d+\.blocks\.\d+\.mlp",
    "  token mixing": r"layers\.\d+\.mixing\.\d+",
    "norm, gate, classifier": r"norm|gate|head",
}
ATTENTION_OPERATORS = re.compile(r"sdwa\.\w*attention_forward|aten\._scaled_dot_product")


def _global_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))


# PyTorch has the formula of global attention for its GPU operators only.
MISSING_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _global_attention_flops
}


@dataclass(frozen=True)
class Cost:
    """What a network or a part of it costs, for one batch.

    Attributes:
        stored, trainable, executed: parameters.
        macs: multiply-accumulates of the forward pass.
        activations: bytes kept for the backward pass.
    """

    stored: int
    trainable: int
    executed: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Complexity:
    """What a network costs at one input shape.

    Attributes:
        total: of the whole network.
        parts: by row of `PARTS`.
        attention_macs: the scores and weighted values alone, without projections.
    """

    total: Cost
    parts: Mapping[str, Cost]
    attention_macs: int


class _ReadParameters(TorchFunctionMode):
    """Collects the ids of the parameters that any function of PyTorch is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.ids |= {id(a) for a in (*args, *kwargs.values()) if isinstance(a, nn.Parameter)}
        return func(*args, **kwargs)


def build_uninitialised(model: str, **options: Any) -> CFMRFN:
    """A preset whose weights are uninitialised memory, which saves the time to draw them."""
    with torch.device("meta"):
        network = timm.create_model(model, **options)
    return network.to_empty(device="cpu")


def measure(
    model: str = "cfmrfn_base", *, batch_size: int = 1, image_size: int = 224, **options: Any
) -> Complexity:
    """Counts what a preset costs.

    Args:
        model: name of the preset.
        batch_size: images of the batch.
        image_size: side of the images, in pixels.
        **options: of `CFMRFN`; without `img_size`, the network is one for images of that size.

    Raises:
        TypeError, ValueError: an option is unknown or not legal.
    """
    network = build_uninitialised(model, **{"img_size": image_size, **options}).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        x = torch.empty(batch_size, 3, image_size, image_size)
        # This pass also loads sdwa's operators, before the counter looks for their formulas.
        with _ReadParameters() as read:
            network.landmarks(x)
            network(x)
        flops = FlopCounterMode(display=False, custom_mapping=MISSING_FORMULAS)
        saved: Counter[str] = Counter()
        # Weights are kept as well, themselves or as views of their fakes, but are no activations.
        weights = [w for p in network.parameters() for w in (p, fake.from_tensor(p))]
        seen = {w.untyped_storage()._cdata for w in weights}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                for module in flops.mod_tracker.parents:
                    saved[module] += storage.nbytes()
            return tensor

        with flops, saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = network(x)  # holds the graph, so that no storage's address is used twice
        del logits

    by_module = flops.get_flop_counts()
    root = type(network).__name__

    def cost(belongs: Callable[[str], bool], modules: Sequence[str]) -> Cost:
        parameters = [p for name, p in network.named_parameters() if belongs(name)]
        return Cost(
            stored=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            executed=sum(p.numel() for p in parameters if id(p) in read.ids),
            macs=sum(sum(by_module.get(name, {}).values()) for name in modules) // 2,
            activations=sum(saved[name] for name in modules),
        )

    def part(pattern: str) -> Cost:
        inside = re.compile(rf"({pattern})(\.|$)")
        names = [name for name, _ in network.named_modules() if re.fullmatch(pattern, name)]
        return cost(lambda name: inside.match(name) is not None, [f"{root}.{n}" for n in names])

    operators = by_module["Global"].items()
    return Complexity(
        total=cost(lambda name: True, ["Global"]),
        parts={label: part(pattern) for label, pattern in PARTS.items()},
        attention_macs=sum(n for op, n in operators if ATTENTION_OPERATORS.match(str(op))) // 2,
    )


# Tables


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first, and those without title, to the left."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        columns = enumerate(zip(header, row, widths, strict=True))
        cells = [c.rjust(w) if title and i else c.ljust(w) for i, (title, c, w) in columns]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, [table[0], ["-" * width for width in widths], *table[1:]]))


def describe_network(complexity: Complexity) -> str:
    """The table of one network, by module."""

    def row(label: str, cost: Cost) -> list[str]:
        return [
            label,
            f"{cost.stored:,}",
            f"{cost.trainable:,}",
            f"{cost.executed:,}",
            f"{cost.macs / 1e6:,.2f}",
            f"{2 * cost.macs / 1e6:,.2f}",
            f"{cost.activations / 2**20:,.2f}",
        ]

    rows = [row(label, cost) for label, cost in complexity.parts.items() if cost.stored]
    scores = complexity.attention_macs / 1e6
    below = [label for label, *_ in rows].index("  attention") + 1
    cells = ["    scores and values", "", "", "", f"{scores:,.2f}", f"{2 * scores:,.2f}", ""]
    rows.insert(below, cells)
    header = ["", "stored", "trainable", "executed", "MMACs", "MFLOPs", "activations/MiB"]
    return format_table(header, [*rows, row("total", complexity.total)])


TABLE_3 = {2: 38.92, 3: 42.61, 4: 46.30, 5: 49.99, 6: 53.68, 7: 57.37, 8: 61.03}
TABLE_5 = {"global": (51.8, 10.3), "window": (43.7, 8.4), "dilated": (41.8, 6.8)}
TABLE_5_REMARKS = {
    "global": "not derivable: attention has no parameters of its own; the text says 52.8M",
    "window": "not derivable: the figures that POSTER++ publishes for itself",
    "dilated": "",
}


def table_3() -> str:
    """Depth against parameters, trainable ones with the embedding layer that is never run."""
    rows = []
    for depth, printed in TABLE_3.items():
        network = build_uninitialised("cfmrfn_base", depth=depth)
        ours = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
        agrees = f"{ours:.2f}" == f"{printed:.2f}"
        remark = (
            "" if agrees else f"not derivable: one more layer is {ours - TABLE_3[depth - 1]:.2f}M"
        )
        rows.append([str(depth), f"{printed:.2f}", f"{ours:.2f}", remark])
    return format_table(["depth", "paper/M", "ours/M", ""], rows)


def table_5() -> str:
    """Kind of attention against executed parameters and multiply-accumulates of one image."""
    rows = []
    for attention, (parameters, macs) in TABLE_5.items():
        ours = measure("cfmrfn_base", attention=attention)
        rows.append(
            [
                attention,
                f"{parameters:.1f}",
                f"{ours.total.executed / 1e6:.1f}",
                f"{macs:.1f}",
                f"{ours.total.macs / 1e9:.1f}",
                f"{ours.attention_macs / 1e6:.2f}",
                TABLE_5_REMARKS[attention],
            ]
        )
    header = ["attention", "paper/M", "ours/M", "paper/GMACs", "ours/GMACs", "attention/MMACs", ""]
    return format_table(header, rows)


@dataclass(frozen=True)
class ComplexityTool:
    """Count parameters, multiply-accumulates and activation memory of a network."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(model="cfmrfn_base"))
    classes: int = 7
    """Number of expressions."""
    image_size: int = 224
    """Side of the square network input, in pixels."""
    batch_size: int = 1
    """Images that multiply-accumulates and activations are counted for."""
    paper: bool = False
    """Print the paper's Tables 3 and 5 with our counts beside them, instead."""


@command.memory_options("lower --batch-size or --image-size")
def main(args: Sequence[str] | None = None, prog: str = "python -m cfmrfn.complexity") -> None:
    """The command line."""
    tool = parse(
        ComplexityTool,
        sys.argv[1:] if args is None else args,
        prog=prog,
    )
    network = tool.network
    if network.ir50 or network.landmarks or network.init:
        raise errors.ConfigError(
            "ir50, landmarks and init have no meaning here: nothing is computed"
        )
    if tool.batch_size < 1:
        raise errors.ConfigError(f"batch-size must be 1 or more, got {tool.batch_size}")
    if tool.paper:
        print("Table 3: parameters by depth, trainable, with IR-50's embedding layer\n")
        print(table_3())
        print("\nTable 5: executed parameters and MACs of one 224 x 224 image, by attention\n")
        print(table_5())
        return
    try:
        complexity = measure(
            network.preset,
            batch_size=tool.batch_size,
            image_size=tool.image_size,
            img_size=tool.image_size,
            num_classes=tool.classes,
            **network.overrides(),
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise errors.ConfigError(f"cannot build {network.preset}: {error}") from error
    print(f"{network.preset}, {tool.batch_size} x {tool.image_size} x {tool.image_size}\n")
    print(describe_network(complexity))


if __name__ == "__main__":
    command.run(main)
