"""The options of a training run, and which values are legal.

The defaults of `ImageConfig` and `OptimConfig` are the paper's (section 3.2) and, where it is
silent, POSTER's; a recipe holds what departs from the defaults.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from cfmrfn import pretrained
from cfmrfn.checks import (
    check_at_least,
    check_fractions,
    check_fractions_below_1,
    check_positive,
    check_types,
    require,
)
from cfmrfn.process.precision import Precision

# The option was --kind before, and is still accepted as such.
LayoutName = Annotated[str, tyro.conf.arg(aliases=["--kind"])]


@dataclass(frozen=True)
class ImageConfig:
    """Images: where they are, and how they are seen."""

    data: Path | None = None
    """Root folder of the data set. None: faces are drawn once and kept under data/."""
    layout: LayoutName = "auto"
    """Layout of the data set: rafdb, affectnet, ferplus, ferplus-argmax10, ferplus-argmax8,
    ferplus-votes (trains on all images with a vote for an expression, and is evaluated as ferplus),
    folder, drawn; auto recognises it."""
    classes: int | None = None
    """Number of classes that the data must have, 2 or more; of AffectNet and FERPlus 7 leaves
    contempt out. None: as found in the data."""
    drawn_train: int = 2000
    """Drawn faces for training (only without --data)."""
    drawn_test: int = 500
    """Drawn faces held out (only without --data)."""
    validation: float = 0.0
    """Part of the training images set aside for validation, which chooses the best epoch. 0: the
    held-out images themselves choose it, as is common in the field, and it is reported as such."""
    image_size: int = 224
    """Side of the square network input, in pixels."""
    color: Literal["RGB", "BGR"] = "RGB"
    """Channel order the network sees; must be what a pretrained backbone was trained with."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    erasing: float = 0.5
    """Probability that a random rectangle is erased."""
    erasing_scale: tuple[float, float] = (0.02, 0.1)
    """Smallest and largest erased part of the image area."""
    crop: bool = False
    """Train on random crops of 80 to 100 % of the area (named in the paper's abstract)."""
    jitter: bool = False
    """Train with random brightness, contrast and saturation, up to 20 % each (abstract)."""
    rotation: float = 0.0
    """Largest random rotation in training, in degrees to either side."""
    translate: float = 0.0
    """Largest random shift in training along each axis, as a part of the side."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest random factor of the size in training."""
    stretch: float = 0.0
    """Largest random change of the width alone in training, as a part of it."""
    brightness: float = 0.0
    """Largest random change of the brightness in training, as a part of white."""
    contrast: float = 0.0
    """Largest random change of the contrast in training, as a part of it."""
    balanced: bool = False
    """Draw training images so that every class is equally likely, with repetition."""
    soft_labels: bool = False
    """Train on the annotators' votes instead of the winning label (FERPlus)."""
    only: tuple[str, ...] | None = None
    """Classes to use, by name, of those in the data. None: all."""
    boxes: bool = True
    """Crop to the face boxes of AffectNet's lists; --no-boxes for images that are cropped."""
    digits: tuple[str, ...] | None = None
    """What class folders named by digits mean: affectnet, rafdb, ferplus or fer2013 labels, or
    class names in order. None: affectnet's from 0, rafdb's from 1."""
    drop_duplicates: bool = False
    """Leave validation and held-out images out that are pixel for pixel training images. Otherwise
    results are given with and without them, where all files together have at most 200 MB."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, classes=2, drawn_train=1, drawn_test=1, image_size=32)
        check_at_least(self, rotation=0)
        check_fractions_below_1(self, "validation", "translate", "stretch")
        check_fractions(self, "flip", "erasing", "brightness", "contrast")
        low, high = self.erasing_scale
        require(0 < low <= high < 1, "erasing_scale", (low, high), "0 < smallest <= largest < 1")
        low, high = self.scale
        require(
            0 < low <= high < math.inf, "scale", (low, high), "finite, and 0 < smallest <= largest"
        )


@dataclass(frozen=True)
class NetworkConfig:
    """Network: a preset, and what departs from it (None: as in --init, or else in the preset)."""

    model: str | None = None
    """Preset: cfmrfn_base (the paper's tables), cfmrfn_equations, cfmrfn_tiny. None: that of the
    checkpoint in --init, or else cfmrfn_tiny."""
    depth: int | None = None
    """Number of cross-fusion layers (Table 3)."""
    attention: Literal["dilated", "window", "global"] | None = None
    """Kind of attention (Table 5)."""
    head_dilations: tuple[int, ...] | None = None
    """Dilation of each head, such as 1 1 2 2 2 3 3 3 (Table 4)."""
    cross_fusion: bool | None = None
    """False: two separate encoders whose outputs are summed (Table 6)."""
    streams: Literal["both", "expression", "landmark"] | None = None
    """Streams in use (Table 6)."""
    tokens: Literal["spatial", "poster_view"] | None = None
    """How the backbone's map becomes tokens; poster_view reshapes without moving pixels."""
    gray: bool | None = None
    """See only how light images are, not their colors: for a network that learns from grey images,
    such as FERPlus, and is used on photographs."""
    q_proj: bool | None = None
    """Project the query (equation 1 does, the paper's counts do not)."""
    token_mixing: bool | None = None
    """Mix the tokens of both streams by a 1 x 1 convolution (the counts have it)."""
    padding_mode: Literal["zeros", "masked"] | None = None
    """What a window sees beyond the border: zeros, or nothing."""
    pre_norm: bool | None = None
    """Normalise before the attention."""
    drop_path_rate: float | None = None
    """Largest rate of stochastic depth."""
    ir50: Path | None = None
    """Pretrained weights of the expression backbone. None: random weights."""
    landmarks: Literal["package", "random"] | Path | None = None
    """Weights of the landmark backbone, which is not trained: a file, random ones, or those that
    come with the package, learnt from drawn faces. None: those in --init, or of the package."""
    init: Literal["pretrained"] | Path | None = None
    """Weights to start from: pretrained, those that come with the package (a folder of that name is
    ./pretrained); best.pt, last.pt or the folder of a run; model.safetensors; a training checkpoint
    of POSTER; public weights of a backbone. What fits is loaded, classes by name."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, depth=1)
        check_fractions(self, "drop_path_rate")

    @property
    def preset(self) -> str:
        """The preset's name, also where none was named."""
        return self.model or "cfmrfn_tiny"

    def overrides(self) -> dict[str, Any]:
        """Keyword arguments for `timm.create_model` that depart from the preset."""
        return {k: v for k, v in self.options().items() if v is not None and k != "model"}

    def options(self) -> dict[str, Any]:
        """The fields that decide the network's structure, and not its weights."""
        weights = ("ir50", "landmarks", "init")
        return {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in weights
        }

    def completed_by(self, other: NetworkConfig) -> NetworkConfig:
        """The same, and what it leaves open of the structure as in `other`."""
        left_open = {n: getattr(other, n) for n, value in self.options().items() if value is None}
        return dataclasses.replace(self, **left_open)


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation: everything else that decides the weights."""

    epochs: int = 300
    """Passes over the training images."""
    batch_size: int = 200
    """Images of one optimizer step, over all processes and micro-batches together."""
    accumulate: int = 1
    """Micro-batches that each process cuts a step into, to save memory."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Base optimizer (the abstract names AdamW, section 3.2 Adam)."""
    lr: float = 4e-5
    """Learning rate after warm-up."""
    weight_decay: float = 0.0
    """Weight decay; biases, norms and positions are left out."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of the expression backbone to the one below."""
    schedule: Literal["exponential", "cosine", "constant"] = "exponential"
    """Course of the learning rate after warm-up."""
    decay: float = 0.98
    """Factor of the learning rate per epoch, in the exponential schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up."""
    rho: float = 0.05
    """Radius of sharpness-aware minimisation. 0: a plain step with one pass."""
    sam_freeze_statistics: bool = True
    """Leave running batch statistics alone in SAM's second pass (POSTER moves them twice)."""
    sam_local: bool = False
    """Each process climbs along its own gradient, which saves one all-reduce per step; N processes
    then no longer equal one."""
    sync_batchnorm: bool = True
    """Batch statistics over all processes, as one process would see them."""
    ce_weight: float = 1.0
    """Weight of the cross-entropy."""
    smooth_weight: float = 2.0
    """Weight of the label-smoothing cross-entropy that is added."""
    label_smoothing: float = 0.2
    """Smoothing of the latter."""
    clip: float | None = None
    """Largest norm of the gradient (of the second pass under SAM). None: no clipping."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then evaluated. 0: none."""
    ema_warmup: bool = False
    """Let the decay of the moving average grow: after n steps it is 1 - (1 + n) ** (-2/3), at most
    --ema. For runs of fewer than some 10 / (1 - ema) steps."""
    precision: Precision = "float32"
    """Autocast type; fp16 comes with a loss scaler."""
    seed: int = 0
    """Seed of weights, data order, augmentation and stochastic depth."""
    freeze: tuple[Literal["expression-backbone", "encoder", "all-but-head"], ...] = ()
    """Parts that are not trained, beside the landmark backbone: no gradients, and as in evaluation,
    with fixed batch statistics and without stochastic depth."""
    class_weights: Literal["balanced", "effective"] | tuple[float, ...] | None = None
    """Weights of the classes in the loss: inverse to their number of images (balanced) or to its
    effective number (Cui et al. 2019), or one number per class. None: all equal."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, epochs=1, batch_size=1, accumulate=1, seed=0)
        check_at_least(self, weight_decay=0, warmup_epochs=0, rho=0, ce_weight=0, smooth_weight=0)
        require(
            self.ce_weight + self.smooth_weight > 0,
            "ce_weight",
            self.ce_weight,
            "above 0 where smooth-weight is 0, as the loss would always be 0",
        )
        check_fractions(self, "label_smoothing")
        check_fractions_below_1(self, "ema")
        check_positive(self, "lr", "clip")
        if isinstance(self.class_weights, tuple):
            require(
                len(self.class_weights) > 0
                and all(0 < weight < math.inf for weight in self.class_weights),
                "class_weights",
                " ".join(map(str, self.class_weights)) or "none",
                "balanced, effective, or a finite number above 0 per class",
            )
        for name in ("layer_decay", "decay"):
            factor = getattr(self, name)
            require(0 < factor <= 1, name, factor, "above 0 and at most 1")


@dataclass(frozen=True)
class RunConfig:
    """Run: how and where it is executed; a resumed run may change these, but recipe and output."""

    recipe: str = "drawn"
    """Named recipe (affectnet7, affectnet8, drawn, ferplus, ferplus-tiny, rafdb), or a YAML
    file: what that leaves out is as in the named recipe that its line `recipe: NAME` names, or
    else as in the paper."""
    resume: Path | None = None
    """Run folder to continue, or a checkpoint in it. --data (the same images, moved) and --epochs
    (more than before) may then be given too."""
    output: Path | None = None
    """Run folder, which must not exist. None: runs/DATA-DATE-TIME, DATA as in --data, or drawn."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., mps; auto takes the NVIDIA or AMD GPU where there is one, else the
    CPU."""
    workers: int | None = None
    """Processes that decode images. None: one per spare core, at most 8."""
    cache: bool = True
    """Keep decoded images in memory, so that each file is read once, if all of them take at most a
    quarter of it. Files that change meanwhile are not noticed; --no-cache reads them each time."""
    checkpoint_every: int | None = None
    """Steps between checkpoints inside an epoch. None: at the end of each epoch only."""
    compile: bool = False
    """Compile the network with torch.compile."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    on_broken: Literal["error", "skip"] = "error"
    """What an unreadable image does: stop with its name, or be counted, named and skipped."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, workers=0, checkpoint_every=1)


@dataclass(frozen=True)
class Config:
    """Train CFMRFN. Without options: drawn faces and a small network, minutes on two cores."""

    images: ImageConfig = field(default_factory=ImageConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.network.gray:
            legal = "RGB with gray, which weighs red, green and blue differently"
            require(self.images.color == "RGB", "color", self.images.color, legal)

    def sections(self) -> dict[str, dict[str, Any]]:
        """Section name -> {field: value} of plain values that YAML can hold."""
        return {
            section.name: {
                f.name: _plain(getattr(getattr(self, section.name), f.name))
                for f in dataclasses.fields(getattr(self, section.name))
            }
            for section in dataclasses.fields(self)
        }

    def flat(self) -> dict[str, Any]:
        """All fields in the one namespace of recipes and flags."""
        return {k: v for section in self.sections().values() for k, v in section.items()}

    def to_yaml(self) -> str:
        """The resolved configuration; `from_yaml` reads it back."""
        return "\n".join(
            f"# {name}\n{yaml.safe_dump(values, sort_keys=False)}"
            for name, values in self.sections().items()
        )

    def absolute(self) -> Config:
        """The same with absolute paths, so that it holds in any working directory."""
        return self._with_paths(lambda path: Path(os.path.abspath(path)))

    def without_folders(self) -> Config:
        """The same with the last part alone of each path, so that it holds on any machine."""
        return self._with_paths(lambda path: Path(path.name))

    def _with_paths(self, changed: Callable[[Path], Path]) -> Config:
        sections = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: _with_paths(section, changed) for name, section in sections.items()}
        )

    def without_effect(self) -> list[str]:
        """Options that were set and change nothing, each in a line that says why.

        They are legal, since a recipe may set several at once of which an option ends the effect.
        """
        images, network, optim = self.images, self.network, self.optim
        one_stream = network.streams in ("expression", "landmark")
        frozen = {"expression-backbone", "all-but-head"}.intersection(optim.freeze)
        idle = [
            ("drawn_train", images.data is not None, "images are those of --data"),
            ("drawn_test", images.data is not None, "images are those of --data"),
            ("erasing_scale", images.erasing == 0, "erasing is 0"),
            ("decay", optim.schedule != "exponential", f"schedule is {optim.schedule}"),
            ("ema_warmup", optim.ema == 0, "ema is 0"),
            ("label_smoothing", optim.smooth_weight == 0, "smooth-weight is 0"),
            ("sam_local", optim.rho == 0, "rho is 0"),
            ("sam_freeze_statistics", optim.rho == 0, "rho is 0"),
            ("padding_mode", network.attention == "global", "attention is global"),
            ("cross_fusion", one_stream, f"streams is {network.streams}"),
            ("tokens", network.streams == "landmark", "streams is landmark"),
            ("drop_path_rate", network.depth == 1, "depth is 1 and the first layer's rate is 0"),
            ("layer_decay", network.streams == "landmark", "streams is landmark"),
            ("layer_decay", bool(frozen), f"{' and '.join(sorted(frozen))} is frozen"),
        ]
        values, defaults = self.flat(), Config().flat()
        lines = [
            f"{name.replace('_', '-')} {values[name]} has no effect, as {why}"
            for name, is_idle, why in idle
            if is_idle and values[name] != defaults[name]
        ]
        if optim.warmup_epochs > optim.epochs:
            lines.append(
                f"warmup-epochs {optim.warmup_epochs} are more than epochs {optim.epochs}: the "
                f"learning rate stays below {optim.lr}"
            )
        return lines

    def differences(self, saved: Config) -> list[str]:
        """What decides the weights and is not as in the `saved` run, as `"lr 0.2, not 0.1"`.

        `data` is none of it: the fingerprint of the images guards that, wherever they are. Nor are
        more epochs, unless the learning rate before them depends on their number.
        """
        mine, theirs = self.absolute().sections(), saved.absolute().sections()
        changed = {
            key: f"{key.replace('_', '-')} {theirs[section][key]}, not {value}"
            for section in ("images", "network", "optim")
            for key, value in mine[section].items()
            if value != theirs[section][key]
        }
        changed.pop("data", None)
        if self.optim.epochs > saved.optim.epochs:
            if saved.optim.schedule == "cosine":
                changed["epochs"] += (
                    " (the cosine schedule falls to 0 at the last epoch: towards another one, "
                    "every step so far would have had another learning rate)"
                )
            else:
                del changed["epochs"]
        return list(changed.values())


Section = TypeVar("Section", ImageConfig, NetworkConfig, OptimConfig, RunConfig)


def _with_paths(section: Section, changed: Callable[[Path], Path]) -> Section:
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    paths: dict[str, Any] = {
        name: changed(value) for name, value in values.items() if isinstance(value, Path)
    }
    return dataclasses.replace(section, **paths)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Path):
        # as it can be told from the name
        return f"./{value}" if str(value) == pretrained.NAME else str(value)
    return value
