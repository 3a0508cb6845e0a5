"""Public weights, in the layouts that users have, into the network; no pickle is ever executed.

Every loader reports what matched, and fails unless the backbone is filled completely. The layouts:

- IR-50 (ArcFace): flat; stages 1-3 or 1-4; blocks named `body.N` or, in POSTER++'s copy,
  `body1.N`, `body2.N`, `body3.N`.
- MobileFaceNet with 68 landmarks: a dict whose "state_dict" holds the weights.
- POSTER: a training checkpoint of the whole network, for a model of POSTER's configuration.

Each of them may be wrapped in a dict, carry the prefix `module.` of `nn.DataParallel`, or be a
safetensors file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from cfmrfn import tensor_files
from cfmrfn.errors import CheckpointError
from cfmrfn.models import CFMRFN

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

# Public training checkpoints hold scores beside the weights, as numpy scalars. These functions only
# rebuild numbers and run no code of the file; numpy 1 and 2 name them differently.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]


@dataclass(frozen=True)
class WeightReport:
    """What a file filled.

    Attributes:
        source: the file.
        target: the part of the network that was to be filled.
        matched: names in the target that were filled.
        missing: names in the target that the file does not have.
        unexpected: names in the file that the target does not have; they were left out.
        notes: differences between the file's network and the target that names do not show.
    """

    source: str
    target: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{self.target} from {self.source}: {len(self.matched)} matched, "
            f"{len(self.missing)} missing{_some(self.missing)}, "
            f"{len(self.unexpected)} unexpected{_some(self.unexpected)}",
            *self.notes,
        ]
        return "; ".join(parts)


def load_ir50(model: CFMRFN, path: str | Path) -> WeightReport:
    """Fills the expression backbone from a public IR-50 checkpoint, in any of its layouts.

    Raises:
        CheckpointError: the file cannot be read, or does not fill the backbone completely. The
            model is then unchanged.
    """
    if model.image_backbone is None:
        raise CheckpointError('streams="landmark" has no expression backbone to load weights into')
    return _fill(
        model.image_backbone, _number_blocks(read_tensors(path)), path, "expression backbone"
    )


def load_landmarks(model: CFMRFN, path: str | Path) -> WeightReport:
    """Fills the landmark backbone from a public MobileFaceNet checkpoint.

    Raises:
        CheckpointError: as for `load_ir50`.
    """
    if model.landmark_backbone is None:
        raise CheckpointError('streams="expression" has no landmark backbone to load weights into')
    return _fill(model.landmark_backbone, read_tensors(path), path, "landmark backbone")


def load_poster(model: CFMRFN, path: str | Path) -> WeightReport:
    """Fills the whole model from a POSTER checkpoint, as far as the two networks agree.

    The model must have `tokens="poster_view"`, `attention="global"`, and the depth and classes of
    the checkpoint.
    POSTER's class tokens and its two coarser scales have no place here: they are reported as
    unexpected, and of its positions and token mixing the rows of the class tokens are left out. So
    the logits are not POSTER's; the weights are a start for training.

    Raises:
        CheckpointError: the model has other options, or as for `load_ir50`.
    """
    if (model.tokens, model.attention) != ("poster_view", "global"):
        raise CheckpointError(
            'POSTER weights need a model with tokens="poster_view" and attention="global", '
            f'got tokens="{model.tokens}" and attention="{model.attention}"'
        )
    tensors = read_tensors(path)
    numbers = [
        int(m[1]) for name in tensors if (m := re.match(r"pyramid_fuse\.blocks\.(\d+)", name))
    ]
    depth = max(numbers, default=-1) + 1
    if depth != len(model.layers):
        raise CheckpointError(
            f"{path} holds {depth} of POSTER's layers, the model has depth={len(model.layers)}"
        )
    renamed = {}
    for name, tensor in tensors.items():
        own_name = name
        for pattern, replacement in POSTER_NAMES:
            own_name = re.sub(pattern, replacement, own_name)
        renamed[own_name] = _without_class_tokens(own_name, tensor)
    notes = (
        "class tokens and coarser scales left out; here the mean of all tokens is classified, and "
        "the backbones see the mean of 2 x 2 pixels instead of every second pixel",
    )
    return _fill(model, renamed, path, "network", notes)


# POSTER's names -> ours, applied in turn. block_l is the scale that this network has.
_LAYER = r"^pyramid_fuse\.blocks\.(\d+)\.block_l\."
POSTER_NAMES = (
    (r"^face_landback\.", "landmark_backbone."),
    (r"^ir_back\.", "image_backbone."),
    (r"^ir_layer\.", "image_embed."),
    (r"^pyramid_fuse\.pos_embed$", "position"),
    (r"^pyramid_fuse\.norm\.", "norm."),
    (r"^se_block\.linear1\.", "gate.0."),
    (r"^se_block\.linear2\.", "gate.2."),
    (r"^head\.linear\.", "head."),
    (_LAYER + r"conv\.", r"layers.\1.mixing.0."),
    (_LAYER + r"norm1\.", r"layers.\1.blocks.0.norm1."),
    (_LAYER + r"attn_img\.", r"layers.\1.blocks.0.attention."),
    (_LAYER + r"norm2\.", r"layers.\1.blocks.0.norm2."),
    (_LAYER + r"mlp1\.", r"layers.\1.blocks.0.mlp."),
    (_LAYER + r"norm3\.", r"layers.\1.blocks.1.norm1."),
    (_LAYER + r"attn_lm\.", r"layers.\1.blocks.1.attention."),
    (_LAYER + r"norm4\.", r"layers.\1.blocks.1.norm2."),
    (_LAYER + r"mlp2\.", r"layers.\1.blocks.1.mlp."),
)


def _without_class_tokens(name: str, tensor: Tensor) -> Tensor:
    """POSTER has, stream after stream, a class token and 7 x 7 places: keeps the places."""
    places = [token for token in range(100) if token not in (0, 50)]
    if name == "position" and tensor.shape[:2] == (1, 50):
        return tensor[0, 1:].unflatten(0, (7, 7))
    if ".mixing.0." in name and len(tensor) == 100:
        tensor = tensor[places]
        return tensor[:, places, 0] if tensor.dim() == 3 else tensor
    return tensor


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, without wrappers and the prefix `module.`.

    Raises:
        CheckpointError: there is no such file; it is damaged; it holds objects other than tensors,
            numbers and text; or there are no named tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such weight file: {path}")
    content = tensor_files.read(path, NUMPY_SCALARS)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): t for name, t in content.items() if isinstance(t, Tensor)}
    if not tensors:
        entries = _some(map(str, content)) if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"{path} holds no named tensors, but a {type(content).__name__}{entries}"
        )
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _number_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names IR blocks `body.N`; where a file has `bodyS.N`, N starts anew with each stage S."""
    stage_block = re.compile(r"body(\d)\.(\d+)\.")
    sizes: dict[int, int] = {}
    for name in tensors:
        if match := stage_block.match(name):
            stage, block = map(int, match.groups())
            sizes[stage] = max(sizes.get(stage, 0), block + 1)

    def rename(match: re.Match[str]) -> str:
        stage, block = map(int, match.groups())
        offset = sum(size for earlier, size in sizes.items() if earlier < stage)
        return f"body.{offset + block}."

    return {stage_block.sub(rename, name): tensor for name, tensor in tensors.items()}


def _fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    path: str | Path,
    target: str,
    notes: tuple[str, ...] = (),
) -> WeightReport:
    """Loads tensors into a module, every one of whose weights they must hold in its shape."""
    own = module.state_dict()
    matched = {name: t for name, t in tensors.items() if name in own and t.shape == own[name].shape}
    report = WeightReport(
        source=str(path),
        target=target,
        matched=tuple(matched),
        missing=tuple(name for name in own if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in own),
        notes=notes,
    )
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)} and not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and name not in matched
    ]
    if misshapen:
        raise CheckpointError(f"{report}; {len(misshapen)} of another shape{_some(misshapen)}")
    if report.missing:
        raise CheckpointError(f"{report}; all weights of the {target} must be in the file")
    module.load_state_dict(matched)
    return report


def _some(names: Iterable[str], limit: int = 3) -> str:
    """ " (the first few names)", or nothing if there are none."""
    names = list(names)
    if not names:
        return ""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f" ({', '.join(names[:limit])}{more})"
