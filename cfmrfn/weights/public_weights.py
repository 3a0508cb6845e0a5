"""Public weights, in the layouts that users have, into the network; no pickle is ever executed.

Every loader reports what matched. `load_init` starts training from any of the files and takes what
fits; the others fail unless their part is filled completely. The layouts:

- CFMRFN: a checkpoint of a run, a folder that was exported as safetensors, the network that comes
  with the package, or the tensors of the network alone.
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

from cfmrfn import pretrained, tensor_files, trained
from cfmrfn.checkpoint import About
from cfmrfn.config import NetworkConfig
from cfmrfn.errors import CheckpointError
from cfmrfn.models import CFMRFN
from cfmrfn.models.resizing import resize_maps

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
        misshapen: what has another shape in the file, as text.
    """

    source: str
    target: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    notes: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{self.target} from {self.source}: {len(self.matched)} matched, "
            f"{len(self.missing)} missing{_some(self.missing)}, "
            f"{len(self.unexpected)} unexpected{_some(self.unexpected)}",
            *self.notes,
        ]
        if self.misshapen:
            parts.append(f"{len(self.misshapen)} of another shape{_some(self.misshapen)}")
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


# Checkpoints of POSTER: their class tokens and two coarser scales have no place here. They are
# reported as unexpected, and of positions and token mixing the rows of the class tokens are left
# out. So the logits are not POSTER's; the weights are a start for training.

POSTER_NOTE = (
    "class tokens and coarser scales left out; here the mean of all tokens is classified, and "
    "the backbones see the mean of 2 x 2 pixels instead of every second pixel"
)


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


def _poster_depth(tensors: Mapping[str, Tensor]) -> int:
    """Layers of a POSTER checkpoint."""
    numbers = [
        int(m[1]) for name in tensors if (m := re.match(r"pyramid_fuse\.blocks\.(\d+)", name))
    ]
    return max(numbers, default=-1) + 1


def _renamed_poster(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """POSTER's tensors under our names, without class tokens."""
    renamed = {}
    for name, tensor in tensors.items():
        own_name = name
        for pattern, replacement in POSTER_NAMES:
            own_name = re.sub(pattern, replacement, own_name)
        renamed[own_name] = _without_class_tokens(own_name, tensor)
    return renamed


def _without_class_tokens(name: str, tensor: Tensor) -> Tensor:
    """POSTER has, stream after stream, a class token and 7 x 7 places: keeps the places."""
    places = [token for token in range(100) if token not in (0, 50)]
    if name == "position" and tensor.shape[:2] == (1, 50):
        return tensor[0, 1:].unflatten(0, (7, 7))
    if ".mixing.0." in name and len(tensor) == 100:
        tensor = tensor[places]
        return tensor[:, places, 0] if tensor.dim() == 3 else tensor
    return tensor


# Starting from any of the files


@dataclass(frozen=True)
class Source:
    """What a file to start from holds.

    Attributes:
        path: the file, where a folder was given the one taken from it.
        what: kind of the file, for the user.
        tensors: by their names in `CFMRFN`.
        network: the configuration of the file's network; None: the file does not say.
        about: what a checkpoint of ours says of itself; None: it is none.
        notes: for the report.
    """

    path: Path
    what: str
    tensors: dict[str, Tensor]
    network: NetworkConfig | None = None
    about: About | None = None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> set[str]:
        """Those of `PARTS` that the file has weights of."""
        return {name for name, prefix in PARTS.items() if has_part(prefix, self.tensors)}

    @property
    def is_gray(self) -> bool | None:
        """Whether the network sees no colour; None: the tensors do not tell."""
        return True if "luma.weights" in self.tensors else None


def read_source(path: str | Path, preset: str | None = None) -> Source:
    """Reads a file to start from, which is recognised by its content, or a folder with one.

    Args:
        path: of it; "pretrained": the network that comes with the package.
        preset: of the latter. None: the one that comes with it where none is named.

    Raises:
        CheckpointError: there is none, it cannot be read, or it holds no known network.
        ConfigError: no network of that preset comes with the package.
    """
    if trained.is_of_package(path):
        path = trained.find(path, preset or pretrained.PRESET)
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in ("best.pt", "last.pt", "model.safetensors")]
        found = [file for file in files if file.is_file()]
        if not found:
            raise CheckpointError(f"folder {path} holds no best.pt, last.pt or model.safetensors")
        path = found[0]
    tensors = read_tensors(path)
    if depth := _poster_depth(tensors):
        network = NetworkConfig(
            model="cfmrfn_base", depth=depth, tokens="poster_view", attention="global"
        )
        renamed = _renamed_poster(tensors)
        return Source(path, "POSTER checkpoint", renamed, network, notes=(POSTER_NOTE,))
    if "input_layer.0.weight" in tensors:
        named = {f"image_backbone.{n}": t for n, t in _number_blocks(tensors).items()}
        return Source(path, "expression backbone (cfmrfn_base has IR-50)", named)
    if "conv2_dw.conv.weight" in tensors:
        named = {f"landmark_backbone.{n}": t for n, t in tensors.items()}
        return Source(path, "landmark backbone (cfmrfn_base has MobileFaceNet)", named)
    if "gate.0.weight" not in tensors:
        raise CheckpointError(
            f"{path} holds the weights of no known network{_some(tensors)}; known are checkpoints "
            "of cfmrfn and of POSTER, IR-50, and MobileFaceNet with 68 landmarks"
        )
    if trained.is_exported(path):
        about = trained.about(path)
        return Source(path, "network that was exported", tensors, about.config.network, about)
    content = tensor_files.read(path, NUMPY_SCALARS)
    if "about" not in content:
        return Source(path, "weights of cfmrfn", tensors)
    about = About.from_dict(content["about"], path)
    return Source(path, "checkpoint of cfmrfn", tensors, about.config.network, about)


def load_init(model: CFMRFN, source: Source, about: About) -> WeightReport:
    """Fills the model with all of a source that fits; `about` says what the model is for.

    The rows of the classifier are matched by the names of the classes; positions (bicubic) and
    token mixing are resized to the model's token map. Streams are matched by what they see.

    Raises:
        CheckpointError: most weights of a part that both have are of another shape: it is another
            network. The model is then unchanged.
    """
    own = model.state_dict()
    if "luma.weights" not in source.tensors:
        own.pop("luma.weights", None)  # constants, which former versions did not save
    tensors = _match_streams(source.tensors, own)
    notes = [*source.notes, *_differences(source, about)]
    notes += resize_maps(tensors, model)
    notes += _adapt_head(tensors, own, source, about.class_names)
    fits = {n: t for n, t in tensors.items() if n in own and t.shape == own[n].shape}
    report = WeightReport(
        source=str(source.path),
        target=source.what,
        matched=tuple(fits),
        # the file of a backbone is not asked for the rest
        missing=tuple(
            name
            for name in own
            if name not in tensors and (has_part("layers.", tensors) or has_part(name, tensors))
        ),
        unexpected=tuple(name for name in tensors if name not in own),
        notes=tuple(notes),
        misshapen=_misshapen(tensors, own),
    )
    for part, prefix in PARTS.items():
        if not has_part(prefix, tensors) or not has_part(prefix, own):
            continue
        # counters of batches have no shape, and fit anywhere
        shared = [n for n in own if n.startswith(prefix) and n in tensors and own[n].ndim]
        if 2 * sum(name in fits for name in shared) <= len(shared):
            raise CheckpointError(
                f"its {part} is that of another network"
                + (f", {source.network.preset}" if source.network else "")
                + f": give --model and the options that it was trained with ({report})"
            )
    model.load_state_dict(fits, strict=False)
    return report


# Part -> beginning of its weights' names.
PARTS = {
    "expression backbone": "image_backbone.",
    "landmark backbone": "landmark_backbone.",
    "encoder": "layers.",
}


def has_part(name: str, tensors: Iterable[str]) -> bool:
    """Whether there are tensors of the part of the network that `name` belongs to."""
    part = name.partition(".")[0]
    return any(other.partition(".")[0] == part for other in tensors)


def _streams(tensors: Iterable[str]) -> list[str]:
    """The streams of a network, in the order of its blocks."""
    return [part for part in ("image_backbone", "landmark_backbone") if has_part(part, tensors)]


def _match_streams(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Numbers what each stream has as in the model, where one of them has the other stream only."""
    theirs, ours = _streams(tensors), _streams(own)
    numbers = {str(theirs.index(s)): str(ours.index(s)) for s in theirs if s in ours}

    def rename(name: str) -> str | None:
        match = re.match(r"(layers\.\d+\.(?:blocks|mixing)\.)(\d+)(\..*)", name)
        if match is None or len(theirs) == len(ours) == 2:
            return name
        number = numbers.get(match[2])
        return None if number is None else f"{match[1]}{number}{match[3]}"

    # a stream that the model lacks keeps its name, marked, to be reported
    return {rename(n) or f"{n} (of the other stream)": t for n, t in tensors.items()}


def _differences(source: Source, about: About) -> list[str]:
    """What differs between the two networks and their input."""
    notes = []
    if source.network is not None:
        ours = about.config.network
        theirs = source.network.options() | {"model": source.network.preset}
        for name, value in (ours.options() | {"model": ours.preset}).items():
            if value != theirs[name]:
                there = "as in the preset" if theirs[name] is None else theirs[name]
                notes.append(f"{name.replace('_', '-')} is {value}, in the file {there}")
    if source.about is not None:
        if source.about.color != about.color:
            notes.append(
                f"WARNING: trained on {source.about.color} and used here on {about.color} images; "
                f"--color {source.about.color} keeps to it"
            )
        if (source.about.mean, source.about.std) != (about.mean, about.std):
            notes.append(
                f"WARNING: trained on images normalised by {source.about.mean} and "
                f"{source.about.std}, used here by {about.mean} and {about.std}"
            )
    return notes


def _adapt_head(
    tensors: dict[str, Tensor],
    own: Mapping[str, Tensor],
    source: Source,
    class_names: tuple[str, ...],
) -> list[str]:
    """Matches the classifier in `tensors` to the classes; without it the model keeps its own."""
    names = ("head.weight", "head.bias")
    if not all(name in tensors for name in names):
        return []
    classes = len(tensors["head.bias"])
    if source.about is None:
        if classes != len(class_names):
            for name in names:
                del tensors[name]
            return [f"new classifier for {len(class_names)} classes, as the file has {classes}"]
        return [
            "the file does not name its classes: taken to be in this order, "
            f"{', '.join(class_names)}"
        ]
    theirs = source.about.class_names
    if theirs == class_names:
        return []
    shared = [name for name in class_names if name in theirs]
    if not shared:
        for name in names:
            del tensors[name]
        return [f"new classifier, as no class is among the file's ({', '.join(theirs)})"]
    if tensors["head.weight"].shape[1:] != own["head.weight"].shape[1:]:
        return []
    for name in names:
        adapted = own[name].clone()
        for shared_name in shared:
            row = tensors[name][theirs.index(shared_name)]
            adapted[class_names.index(shared_name)] = row
        tensors[name] = adapted
    new = [name for name in class_names if name not in theirs]
    dropped = [name for name in theirs if name not in class_names]
    return [
        f"classifier by name: {', '.join(shared)} from the file"
        + (f"; new are {', '.join(new)}" if new else "")
        + (f"; left out are {', '.join(dropped)}" if dropped else "")
    ]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, without wrappers and their prefixes of the names.

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
    # of nn.DataParallel and torch.compile
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): t for name, t in tensors.items()}


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
    module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, target: str
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
        misshapen=_misshapen(tensors, own),
    )
    if report.misshapen:
        raise CheckpointError(str(report))
    if report.missing:
        raise CheckpointError(f"{report}; all weights of the {target} must be in the file")
    module.load_state_dict(matched)
    return report


def _misshapen(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(
        f"{name} is {tuple(tensors[name].shape)} and not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    )


def _some(names: Iterable[str], limit: int = 3) -> str:
    """ " (the first few names)", or nothing if there are none."""
    names = list(names)
    if not names:
        return ""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f" ({', '.join(names[:limit])}{more})"
