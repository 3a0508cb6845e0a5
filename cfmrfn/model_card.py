"""The model card of an exported network: README.md, with the front matter that hubs read.

Every figure in it is from the run's own files; what they do not hold is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cfmrfn.checkpoint import About
from cfmrfn.config import Config

_CHOSEN = {
    "val": "the best on the validation images",
    "test": "the best on the held-out images themselves, so that the figures below are optimistic",
    None: "the last",
}


@dataclass(frozen=True)
class Card:
    """What a model card is made of.

    Attributes:
        about: of the network.
        name: of the run.
        source: name and SHA-256 of the file that the weights come from.
        report: the run's `report.json`; None: there is none.
        files: SHA-256 of the exported files by name.
        differences: by file, the largest one from PyTorch, as its check printed it.
        takes_pixels: whether ONNX and torch files take pixels.
        has_landmarks: whether the landmark stream is trained.
    """

    about: About
    name: str
    source: tuple[str, str]
    report: Mapping[str, Any] | None
    files: Mapping[str, str]
    differences: Mapping[str, str]
    takes_pixels: bool
    has_landmarks: bool

    def __str__(self) -> str:
        """The text of README.md."""
        front = yaml.safe_dump(self._front_matter(), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{front}---",
            f"# {_text(self.name)}",
            self._summary(),
            f"## Data\n\n{self._data()}",
            f"## Results\n\n{self._results()}",
            f"## Use\n\n{self._use()}",
            f"## Images\n\n{self._images()}",
            f"## Intended use\n\n{_INTENDED}",
            f"## Limits and bias\n\n{self._limits()}",
            f"## Training\n\n{self._training()}",
            f"## Files\n\n{self._files()}",
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def _config(self) -> Config:
        return self.about.config

    @property
    def _is_drawn(self) -> bool:
        return self._config.images.data is None

    @property
    def _set_name(self) -> str:
        if self.report is not None and isinstance(self.report.get("data"), str):
            return str(self.report["data"])
        return "drawn faces" if self._is_drawn else Path(self._config.images.data or "").name

    @property
    def _held_out(self) -> Mapping[str, Any] | None:
        """The results of exactly these weights."""
        try:
            results = (self.report or {})["held_out"][self.about.chosen_on or "last"]
            return results if results["epoch"] == self.about.epoch else None
        except (KeyError, TypeError):
            return None

    def _front_matter(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "license": "unknown",
            "library_name": "timm" if "config.json" in self.files else "onnx",
            "pipeline_tag": "image-classification",
            "tags": ["facial-expression-recognition", "cfmrfn"],
        }
        if (results := self._held_out) is not None:
            values["model-index"] = [
                {
                    "name": self.name,
                    "results": [
                        {
                            "task": {"type": "image-classification"},
                            "dataset": {
                                "name": f"{self._set_name}, held-out images",
                                "type": "-".join(self._set_name.lower().split()),
                            },
                            "metrics": [
                                {"type": kind, "name": name, "value": round(results[key], 4)}
                                for kind, name, key in _METRICS
                            ],
                        }
                    ],
                }
            ]
        return values

    def _summary(self) -> str:
        classes = self.about.class_names
        return (
            f"A network of the CFMRFN family (`{self._config.network.preset}`) that sorts images "
            f"of one face each into {len(classes)} expressions: "
            f"{', '.join(map(_text, classes))}. Trained on {_text(self._set_name)}."
        )

    def _data(self) -> str:
        images = self._config.images
        lines = [f"- Set: {_text(self._set_name)}, layout `{images.layout}`."]
        if self._is_drawn:
            lines[0] = (
                f"- Set: faces drawn by a program, {images.drawn_train} for training and "
                f"{images.drawn_test} held out. No person is in them."
            )
        if images.validation:
            lines.append(
                f"- {100 * images.validation:g} % of the training images were set aside for "
                "validation."
            )
        if (results := self._held_out) is not None:
            lines.append(f"- Held out: {results['images']} images.")
        if not self._is_drawn:
            lines.append("- Number of training images: not recorded in the run's report.")
        if images.only:
            lines.append(f"- Of its classes these were used: {', '.join(map(_text, images.only))}.")
        left_out = (self.report or {}).get("left_out")
        if isinstance(left_out, Mapping) and left_out:
            counts = (f"{count} ({_text(str(reason))})" for reason, count in left_out.items())
            lines.append(f"- Left out: {'; '.join(counts)}.")
        return "\n".join(lines)

    def _results(self) -> str:
        results = self._held_out
        if results is None:
            return (
                "None are given: there was no report of these weights beside their checkpoint. "
                "`python -m cfmrfn.evaluate` measures them on images with known expressions."
            )
        per_class = results["per_class"]
        rows = [
            f"| {_text(name)} | {'no images' if value is None else f'{value:.4f}'} |"
            for name, value in per_class.items()
        ]
        return "\n".join(
            [
                f"Measured on the {results['images']} held-out images of "
                f"{_text(self._set_name)}, on these weights, of epoch {self.about.epoch}: "
                f"{_CHOSEN[self.about.chosen_on]}.",
                "",
                "| | |",
                "|---|---|",
                *(f"| {name} | {results[key]:.4f} |" for _, name, key in _METRICS),
                f"| Cross-entropy | {results['loss']:.4f} |",
                "",
                "| Expression | Accuracy (recall) |",
                "|---|---|",
                *rows,
                "",
                "Not measured: other data sets, calibration, and results by age, gender or skin "
                "colour.",
            ]
        )

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

    def _limits(self) -> str:
        first = (
            "- **Drawn faces only.** The network has seen drawings by a program, and no person. "
            "What it answers on a photograph means nothing; it serves to try the software.\n"
            if self._is_drawn
            else ""
        )
        return first + _LIMITS

    def _training(self) -> str:
        optim, network = self._config.optim, self._config.network
        started = [
            f"{name} from `{Path(path).name}`"
            for name, path in (
                ("expression backbone", network.ir50),
                ("landmark backbone", network.landmarks),
                ("network", network.init),
            )
            if path not in (None, "package", "random")
        ]
        if network.landmarks == "package":
            started.append("landmark backbone as it comes with the package (drawn faces)")
        departs = ", ".join(f"{n} {_text(str(v))}" for n, v in network.overrides().items())
        lines = [
            f"- Network: `{network.preset}`" + (f", with {departs}." if departs else "."),
            f"- Epoch {self.about.epoch} of {optim.epochs}, {_CHOSEN[self.about.chosen_on]}".split(
                ", so that"
            )[0]
            + ".",
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
                f"Made of `{_text(name)}`, SHA-256 `{digest}`.",
            ]
        )


def read_report(folder: Path) -> Mapping[str, Any] | None:
    """`report.json` of a run; None where there is none that can be read."""
    try:
        report = json.loads((folder / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def _text(value: str) -> str:
    """Text as Markdown shows it, on one line; bytes of a name that are no UTF-8 as escapes."""
    plain = value.encode("utf-8", "backslashreplace").decode()
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#" else c for c in " ".join(plain.split()))


# Hub's name of a metric, the reader's, and that in the report.
_METRICS: Sequence[tuple[str, str, str]] = (
    ("accuracy", "Accuracy", "accuracy"),
    ("recall", "Mean accuracy of the classes", "mean_class_accuracy"),
    ("f1", "Macro F1", "macro_f1"),
)

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
  covered or blurred, and an image of no face at all. How far they can be trusted as probabilities
  was not measured here.
- **Licence.** That of the software is not that of the weights. Owners of face data sets commonly
  allow non-commercial research only (RAF-DB and AffectNet do), and may bind what is learned from
  their images. Whoever publishes these weights must state their licence, in the first line of this
  file."""
