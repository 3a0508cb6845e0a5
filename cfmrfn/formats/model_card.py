"""The model card of an exported network: README.md, with the front matter that hubs read.

Every figure in it is from the run's own files, or from what `cfmrfn.evaluate` wrote of the same
weights; what these do not hold is said to be missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cfmrfn import pretrained
from cfmrfn.checkpoint import About
from cfmrfn.config import Config
from cfmrfn.errors import ConfigError, brief
from cfmrfn.formats.result_tables import METRICS, as_markdown, of_classes, overall
from cfmrfn.formats.terms import DRAWN, Terms, terms_of
from cfmrfn.metrics import Calibration

# Split that chose the epoch -> its images; None: the epoch is the last.
_CHOSEN_ON = {"val": "validation images", "test": "held-out images", None: None}


@dataclass(frozen=True)
class Card:
    """What a model card is made of.

    Attributes:
        about: of the network.
        name: title, such as the run's.
        source: name and SHA-256 of the file that the weights come from.
        weights: their digest, whatever file they are in, see `cfmrfn.checkpoint.digest_of`.
        report: the run's `report.json`; None: there is none.
        evaluation: what `cfmrfn.evaluate` wrote of these weights, see `read_evaluation`; None:
            results are those of the report.
        rounding: what float16 weights cost, a sentence; None: they are as they were trained.
        files: SHA-256 of the exported files by name.
        differences: by file, the largest one from PyTorch, as its check printed it.
        takes_pixels: whether ONNX and torch files take pixels.
        has_landmarks: whether the landmark stream is trained.
    """

    about: About
    name: str
    source: tuple[str, str]
    weights: str
    report: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None
    rounding: str | None
    files: Mapping[str, str]
    differences: Mapping[str, str]
    takes_pixels: bool
    has_landmarks: bool

    def __str__(self) -> str:
        """The text of README.md."""
        front = yaml.safe_dump(self._front_matter(), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{front}---",
            f"# {as_markdown(self.name)}",
            self._summary(),
            f"## Data\n\n{self._data()}",
            f"## Results\n\n{self._results()}",
            f"## Use\n\n{self._use()}",
            f"## Images\n\n{self._images()}",
            f"## Intended use\n\n{self._intended()}",
            f"## Limits and bias\n\n{self._limits()}",
            f"## Licence\n\n{self._terms.licence}",
            f"## Training\n\n{self._training()}",
            f"## Files\n\n{self._files()}",
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def _config(self) -> Config:
        return self.about.config

    @property
    def _set_name(self) -> str:
        return set_name(self.about, self.report)

    @property
    def _terms(self) -> Terms:
        return terms(self.about, self.report)

    @property
    def _tested_on(self) -> str:
        """Name of the data set that the results are on."""
        return self._set_name if self.evaluation is None else str(self.evaluation["set"])

    @property
    def _is_on_own_set(self) -> bool:
        """Whether the results are on images of the data set that the network learned from."""
        if self.evaluation is None:
            return True
        tested = terms_of(self.evaluation.get("layout", ""), self._tested_on)
        if tested != Terms():  # a published set is the same, whatever its folder is named
            return tested == self._terms
        images = self._config.images
        folder = f"drawn-faces-{images.classes or 7}-{images.drawn_train}-{images.drawn_test}"
        folder = folder if images.data is None else Path(images.data).name
        return Path(self.evaluation.get("data", "")).name == folder

    @property
    def _tested(self) -> str:
        """What the images are that the results are on."""
        split = (self._measured or {}).get("split", "test")
        # former runs did not record which they validated on
        unknown = "val" if self.about.chosen_on == "val" else None
        validated_on = (self.report or {}).get("validation_split", unknown)
        if split == "train":
            return "training images"
        if split == "val" == validated_on and self._is_on_own_set:
            return "validation images"
        return "held-out images" if split in ("val", "test") else "images"

    @property
    def _measured(self) -> Mapping[str, Any] | None:
        """The results of exactly these weights."""
        if self.evaluation is not None:
            return self.evaluation
        try:
            results = (self.report or {})["held_out"][self.about.chosen_on or "last"]
            if results.get("weights") is not None:
                return results if results["weights"] == self.weights else None
            # of a former version
            return results if results["epoch"] == self.about.epoch else None
        except (KeyError, TypeError):
            return None

    def _front_matter(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            **self._terms.front_matter(),
            "library_name": "timm" if "config.json" in self.files else "onnx",
            "pipeline_tag": "image-classification",
            "tags": ["facial-expression-recognition", "cfmrfn"],
        }
        if (results := self._measured) is not None:
            values["model-index"] = [
                {
                    "name": self.name,
                    "results": [
                        {
                            "task": {"type": "image-classification"},
                            "dataset": {
                                "name": ", ".join(
                                    filter(None, [self._tested_on, self._tested, self._shared])
                                ),
                                "type": "-".join(re.findall(r"\w+", self._tested_on.lower())),
                                **({"split": results["split"]} if "split" in results else {}),
                            },
                            "metrics": [
                                {"type": kind, "name": name, "value": round(results[key], 4)}
                                for kind, name, key in METRICS
                            ],
                        }
                    ],
                }
            ]
        return values

    @property
    def _shared(self) -> str:
        """Among how few classes predictions were, where others were left out; else empty."""
        results = self._measured or {}
        shared = len(results.get("per_class", ()))
        if not results.get("shared_classes") or shared == len(self.about.class_names):
            return ""
        return f"{shared} shared classes"

    def _how_chosen(self) -> str:
        """How the epoch was chosen, and what that means for the results."""
        images = _CHOSEN_ON[self.about.chosen_on]
        if images is None:
            return "the last"
        if not self._is_on_own_set:
            return f"the best on the {images} of {as_markdown(self._set_name)}"
        themselves = " themselves, so that the figures below are optimistic"
        return f"the best on the {images}{themselves if images == self._tested else ''}"

    def _summary(self) -> str:
        classes = self.about.class_names
        return (
            f"A network of the CFMRFN family (`{self._config.network.preset}`) that sorts images "
            f"of one face each into {len(classes)} expressions: "
            f"{', '.join(map(as_markdown, classes))}. Trained on {as_markdown(self._set_name)}"
            + (f", {self._terms.purpose}: see the licence below." if self._terms.purpose else ".")
        )

    def _data(self) -> str:
        images = self._config.images
        layout = self.about.layout or images.layout
        lines = [f"- Set: {as_markdown(self._set_name)}, layout `{layout}`."]
        if self.about.is_drawn:
            drawn = f", {images.drawn_train} for training and {images.drawn_test} held out"
            lines[0] = (
                f"- Set: faces drawn by a program{drawn if images.data is None else ''}. No person "
                "is in them."
            )
        report = self.report or {}
        if images.validation and report.get("validation_split") == "train":
            lines.append(
                f"- {100 * images.validation:g} % of the training images were set aside for "
                "validation."
            )
        count = report.get("training_images", "not recorded in the run's report")
        lines.append(f"- Training images: {count}.")
        if report.get("validation_images"):
            lines.append(f"- Validation images: {report['validation_images']}.")
        # the same number in each epoch; without a report the results may be on them
        epochs = report.get("held_out", {}).values()
        held_out = [epoch["images"] for epoch in epochs if "images" in epoch]
        if self._measured and self._tested == "held-out images" and self._is_on_own_set:
            held_out.append(self._measured["images"])
        if held_out:
            lines.append(f"- Held out: {held_out[0]} images.")
        if images.only:
            lines.append(
                f"- Of its classes these were used: {', '.join(map(as_markdown, images.only))}."
            )
        left_out = report.get("left_out")
        if isinstance(left_out, Mapping) and left_out:
            counts = (f"{count} ({as_markdown(str(reason))})" for reason, count in left_out.items())
            lines.append(f"- Left out: {'; '.join(counts)}.")
        lines += [f"- {each}" for each in self._terms.images]
        return "\n".join(lines)

    def _results(self) -> str:
        results = self._measured
        if results is None:
            return (
                "None are given: there was no report of these weights beside their checkpoint. "
                "`python -m cfmrfn.evaluate` measures them on images with known expressions."
            )
        split = f" (split {results['split']})" if "split" in results else ""
        measured = (
            f"Measured on the {results['images']} {self._tested} of {as_markdown(self._tested_on)}"
            f"{split}, on these weights, of epoch {self.about.epoch}: {self._how_chosen()}."
        )
        if self._tested == "training images" and self._is_on_own_set:
            measured += " The network learned from them: of other images the figures say little."
        if results.get("flip"):
            measured += " Probabilities are the mean over each image and its mirror image."
        if self._shared:
            measured += (
                f" Predictions are among the {self._shared} alone, of the network's "
                f"{len(self.about.class_names)}; their probabilities are scaled to sum to 1."
            )
        columns = {"": results}
        duplicates = results.get("duplicates") or {}
        of = f"{duplicates.get('of', 'training')} images"
        if not self._is_on_own_set:
            of += " of that set"
        if duplicates.get("left_out") and duplicates["images"]:
            measured += (
                f" {len(duplicates['images'])} more were left out, which are {of} too, pixel for "
                "pixel."
            )
        if without := results.get("without_duplicates"):
            copies = results["images"] - without["images"]
            measured += (
                f" {copies} of the images are {of} too, pixel for pixel; the other "
                f"{without['images']} are given beside all."
            )
            columns = {"All images": results, "Without duplicates": without}
        parts = [measured, overall(columns), of_classes(columns)]
        if "confusion_matrix" in results:
            others = ", of the others by a bootstrap over the images"
            parts.append(
                "In brackets: 95 % intervals, of single classes by Wilson's formula"
                f"{others if 'bootstrap' in results else ''}. They say how far a figure depends on "
                "which images were tested, and not on the seed of training."
            )
        if "calibration" in results:
            parts.append(
                "ECE is the expected calibration error (Guo et al. 2017, "
                f"{Calibration.BINS} bins), 0 where confidence is accuracy; the Brier score is "
                "summed over the classes, 0 to 2."
            )
        calibration = "" if "calibration" in results else "calibration, "
        others = "other data sets" if self._is_on_own_set else "further data sets"
        parts.append(
            f"Not measured: {others}, {calibration}and results by age, gender or skin colour."
        )
        return "\n\n".join(parts)

    def _use(self) -> str:
        parts = []
        if "model.onnx" in self.files or "model.safetensors" in self.files:
            target = "model.onnx" if "model.onnx" in self.files else "."
            parts.append(
                "On photographs, faces found and aligned "
                "(`pip install 'sdwa[faces,export]'`):\n\n"
                f"```sh\npython -m cfmrfn.predict {target} photo.jpg\n```\n\n"
                "```python\nimport cfmrfn\n\n"
                f'predictor = cfmrfn.Predictor("{target}")\n'
                'for face in predictor("photo.jpg"):\n'
                "    print(face.expression, face.probabilities, face.box)\n```"
            )
        if "model.onnx" in self.files:
            parts.append(self._use_onnx())
        if "model.safetensors" in self.files:
            parts.append(self._use_timm())
        if "model.pt2" in self.files:
            parts.append(self._use_torch())
        return "\n\n".join(parts)

    def _read_pixels(self) -> str:
        size = self.about.image_size
        lines = [
            f'image = Image.open("face.jpg").convert("RGB").resize(({size}, {size}), '
            "Image.Resampling.BILINEAR)",
            "pixels = np.asarray(image)[None]  # (1, height, width, 3)",
        ]
        if not self.takes_pixels:
            order = "[..., ::-1]" if self.about.color == "BGR" else ""
            lines += [
                f"mean, std = {list(self.about.mean)}, {list(self.about.std)}",
                f"images = ((pixels{order} / 255 - mean) / std).transpose(0, 3, 1, 2)"
                ".astype(np.float32)",
            ]
        return "\n".join(lines)

    def _use_onnx(self) -> str:
        array = "pixels" if self.takes_pixels else "images"
        softmax = (
            "probabilities = results[0][0]"
            if self.takes_pixels
            else "scores = np.exp(results[0][0] - results[0][0].max())\n"
            "probabilities = scores / scores.sum()"
        )
        return (
            "The ONNX file alone, on an image of one face:\n\n"
            "```python\nimport json\n\nimport numpy as np\nimport onnxruntime\n"
            "from PIL import Image\n\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            'about = json.loads(session.get_modelmeta().custom_metadata_map["cfmrfn"])["about"]\n'
            f"{self._read_pixels()}\n"
            f'results = session.run(None, {{"images": {array}}})\n'
            f"{softmax}\n"
            'print(dict(zip(about["class_names"], probabilities)))\n```'
        )

    def _use_timm(self) -> str:
        reverse = (
            'image = Image.merge("RGB", image.split()[::-1])  # the network sees BGR\n'
            if self.about.color == "BGR"
            else ""
        )
        return (
            "With timm, from a clone of this folder:\n\n"
            "```python\nimport timm\nfrom PIL import Image\n\n"
            "import cfmrfn  # registers the network\n\n"
            'model = timm.create_model("local-dir:.", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            'image = Image.open("face.jpg").convert("RGB")\n'
            f"{reverse}"
            "probabilities = model(transform(image)[None]).softmax(1)[0]\n"
            'print(dict(zip(model.pretrained_cfg["label_names"], probabilities.tolist())))\n```'
        )

    def _use_torch(self) -> str:
        array = "pixels.copy()" if self.takes_pixels else "images"
        softmax = "" if self.takes_pixels else ".softmax(1)"
        logits = f"model(torch.from_numpy({array})){'[0]' if self.has_landmarks else ''}"
        return (
            "With PyTorch alone:\n\n"
            "```python\nimport json\n\nimport numpy as np\nimport torch\nfrom PIL import Image\n\n"
            'extra = {"cfmrfn.json": ""}\n'
            'model = torch.export.load("model.pt2", extra_files=extra).module()\n'
            'about = json.loads(extra["cfmrfn.json"])["about"]\n'
            f"{self._read_pixels()}\n"
            f"probabilities = {logits}{softmax}[0]\n"
            'print(dict(zip(about["class_names"], probabilities.tolist())))\n```'
        )

    def _images(self) -> str:
        about = self.about
        lines = [
            f"- One face, upright, as in the training images, resized to {about.image_size} x "
            f"{about.image_size} pixels (bilinear, antialiased, proportions not kept).",
            f"- Channels in the order {about.color}, divided by 255, less the mean "
            f"{list(about.mean)}, divided by the standard deviation {list(about.std)}.",
        ]
        if self._config.network.gray:
            lines.append(
                "- Within the network colours become grey (luma of ITU-R BT.601): colour images "
                "need no preparation, and nothing depends on their colours."
            )
        if self.takes_pixels:
            lines.append(
                "- `model.onnx` and `model.pt2` take uint8 pixels in RGB, (batch, height, width, "
                "3): order, normalisation and softmax are inside."
            )
        if self.has_landmarks:
            lines.append(
                "- The second output is 68 landmarks in the order of iBUG 300-W, x and y in pixels "
                "of the resized image."
            )
        else:
            lines.append(
                "- Landmarks are not given: no landmark stream with trained weights is in it."
            )
        return "\n".join(lines)

    def _intended(self) -> str:
        only = self._terms.license == "other"
        return ("Within what the licence below allows:\n\n" if only else "") + _INTENDED

    def _limits(self) -> str:
        first = (
            "- **Drawn faces only.** The network has seen drawings by a program, and no person. "
            "What it answers on a photograph means nothing; it serves to try the software.\n"
            if self.about.is_drawn
            else ""
        )
        measured = self._measured or {}
        trust = (
            "How far they can be trusted as probabilities is in the calibration error above, for "
            "images like the tested ones alone."
            if "calibration" in measured
            else "How far they can be trusted as probabilities was not measured here."
        )
        return f"{first}{_LIMITS} {trust}"

    def _training(self) -> str:
        optim, network = self._config.optim, self._config.network
        started = [
            f"{name} that comes with the package"
            if path == pretrained.NAME
            else f"{name} from `{Path(path).name}`"
            for name, path in (
                ("expression backbone", network.ir50),
                ("landmark backbone", network.landmarks),
                ("network", network.init),
            )
            if path not in (None, "package", "random")
        ]
        if network.landmarks == "package":
            started.append("landmark backbone as it comes with the package (drawn faces)")
        departs = ", ".join(f"{n} {as_markdown(str(v))}" for n, v in network.overrides().items())
        images = _CHOSEN_ON[self.about.chosen_on]
        chosen = "the last" if images is None else f"the best on the {images}"
        lines = [
            f"- Network: `{network.preset}`" + (f", with {departs}." if departs else "."),
            f"- Epoch {self.about.epoch} of {optim.epochs}, {chosen}.",
            f"- {optim.optimizer}, learning rate {optim.lr:g} ({optim.schedule}), batches of "
            f"{optim.batch_size}, "
            + (f"sharpness-aware with radius {optim.rho:g}" if optim.rho else "plain steps")
            + f", seed {optim.seed}.",
            f"- Start: {', '.join(started) if started else 'random weights'}.",
            "- The whole configuration is in the files, under `cfmrfn`; of paths only the last "
            "part.",
            "- Versions in training: "
            + ", ".join(f"{name} {version}" for name, version in self.about.versions.items())
            + ".",
        ]
        return "\n".join(lines)

    def _files(self) -> str:
        rows = [
            f"| `{name}` | {self.differences.get(name, '')} | `{digest}` |"
            for name, digest in self.files.items()
        ]
        name, digest = self.source
        return "\n".join(
            [
                "Checked on export against the network in PyTorch, at batches of 1 and 3.",
                "",
                "| File | Largest difference | SHA-256 |",
                "|---|---|---|",
                *rows,
                "",
                f"Made of `{as_markdown(name)}`, SHA-256 `{digest}`.",
                *([] if self.rounding is None else ["", self.rounding]),
            ]
        )


def read_report(folder: Path) -> Mapping[str, Any] | None:
    """`report.json` of a run; None where there is none.

    Raises:
        ConfigError: it cannot be read, or is damaged.
    """
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text("utf-8"))
        results = report["held_out"].values()
        if any(not isinstance(of_one_epoch, dict) for of_one_epoch in results):
            raise ValueError("held_out")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read report {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"report {path} is damaged ({brief(error)}): put a whole one there, or none, and the "
            "card says that there was none"
        ) from error
    return report


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """The results of a network in a JSON file that `cfmrfn.evaluate` wrote.

    Raises:
        ConfigError: it cannot be read, or holds no such results.
    """
    try:
        results = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read results {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"results {path} are damaged: {error}") from error
    if not isinstance(results, dict) or "weights" not in results:
        raise ConfigError(
            f"results {path} are not those of one network; legal is NAME.json as python -m "
            "cfmrfn.evaluate writes it now"
        )
    return results


def set_name(about: About, report: Mapping[str, Any] | None) -> str:
    """Name of the data set that a network learned from, as its run's report has it."""
    if report is not None and isinstance(report.get("data"), str):
        return str(report["data"])
    return "drawn faces" if about.is_drawn else Path(about.config.images.data or "").name


def terms(about: About, report: Mapping[str, Any] | None) -> Terms:
    """What a network may be used for, by its data set."""
    if about.is_drawn:
        return DRAWN
    return terms_of(about.layout or about.config.images.layout, set_name(about, report))


_INTENDED = """\
Research on expression recognition, teaching, and tools for people who have agreed to be looked at,
such as sorting one's own photographs. A person should look at what it says before it has
consequences for anybody.

Not for decisions about people: hiring, marking, credit, insurance, health, policing, border
control, lie detection or surveillance. The European Union's AI Act forbids inferring the emotions
of people at work and in education, except for medical or safety reasons, and lays duties on other
uses."""

_LIMITS = """\
- **An expression is not a feeling.** The network names what a face looks like to annotators. People
  smile without joy, and are sad without showing it; what a face means depends on person, culture
  and situation, none of which it sees.
- **Posed and spontaneous expressions differ.** Data sets hold many posed and exaggerated faces.
  Everyday expressions are weaker and mixed, and accuracy on them is lower than on the set's own
  held-out images.
- **Annotators disagree,** most about fear, disgust, contempt and anger. A label is a majority's
  opinion, or one person's, and accuracy measures agreement with it.
- **Data sets are not the world.** Ages, genders, skin colours and cultures are unequally in them,
  and so are expressions within each group. Error rates may differ between groups; they were not
  measured here. Measure them on your own users before you rely on an answer.
- **It always answers.** Every image gets probabilities that sum to one, also a face turned away,
  covered or blurred, and an image of no face at all."""
