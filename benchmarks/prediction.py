"""Faces a second of prediction, against what the network alone does on the same machine.

    python -m benchmarks.prediction --json benchmarks/results/cpu-prediction.json

pictures: a folder of 224 x 224 crops from file to probabilities, as `cfmrfn.predict` does it, and
the network on the same crops, decoded and normalised before. Both take their turns in one run. The
network has random weights, and probabilities are compared before anything is timed.

video: a video of 640 x 480 pixels in which a drawn face moves, from file to probabilities (faces),
and to a file with boxes and bars too (drawn); and the network on the same faces, cut out before.
The face must be found in all frames.

onnx: the network in onnxruntime, as `cfmrfn.export` writes it, and in PyTorch, on as many threads,
on batches of 1 and 32.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import timm
import torch

import cfmrfn  # registers the networks
from benchmarks import command_line, measure
from benchmarks.command_line import choose
from benchmarks.record import Measurement, Record, Timing, UserError, start_record
from benchmarks.report import prediction_table
from cfmrfn import checkpoint, video
from cfmrfn.classifier import Classifier, load_classifier
from cfmrfn.config import parse_config
from cfmrfn.data import EXPRESSIONS, find_images
from cfmrfn.data.synthetic import draw_face, write_faces
from cfmrfn.export import export
from cfmrfn.overlay import draw

CLASSES = 7
BATCH = 32
SIDE = 224
FRAMES, FRAME_SIZE, FRAME_RATE = 150, (640, 480), 25.0


@dataclass(frozen=True)
class Options:
    """What all cases are given.

    Attributes:
        model: preset of the network; None: each case's own.
        device: that the network runs on.
        seconds: spent on each case, about.
        folder: for files that are needed.
    """

    model: str | None
    device: torch.device
    seconds: float
    folder: Path


def pictures(record: Record, options: Options) -> None:
    """A folder of crops through `cfmrfn.Predictor.stream`."""
    model = options.model or "cfmrfn_base"
    path = random_checkpoint(options.folder, model)
    crops = write_faces(
        options.folder / "crops", train=4 * BATCH - CLASSES, test=CLASSES, size=SIDE, progress=False
    )
    files = find_images(crops / "Image").paths
    predictor = cfmrfn.Predictor(path, str(options.device))
    batches = torch.cat([predictor.prepare(file).images for file in files]).split(BATCH)

    def network() -> torch.Tensor:
        return torch.cat([predictor.classifier(batch).probabilities for batch in batches])

    def predict() -> torch.Tensor:
        answers = predictor.stream(files, BATCH)
        return torch.tensor([[*face.probabilities.values()] for (face,) in answers])

    check(network(), predict(), "probabilities")
    size = predictor.about.image_size
    case = f"{model} at {size} x {size}, {len(files)} crops of {SIDE} x {SIDE}, batches of {BATCH}"
    compare(record, case, "face", len(files), {"network": network, "predict": predict}, options)


def moving_face(record: Record, options: Options) -> None:
    """A video through `cfmrfn.video.read`."""
    model = options.model or "cfmrfn_tiny"
    predictor = cfmrfn.Predictor(random_checkpoint(options.folder, model), str(options.device))
    path = film(options.folder / "face.mp4")

    def faces() -> torch.Tensor:
        frames = video.read(path, predictor)
        return torch.tensor([[*face.probabilities.values()] for f in frames for face in f.faces])

    def drawn() -> None:
        with video.VideoWriter(options.folder / "drawn.mp4", FRAME_RATE) as writer:
            for frame in video.read(path, predictor):
                writer.write(draw(frame.pixels, frame.faces, bars=True, grow=False), frame.seconds)

    tracker = video.Tracker(predictor)
    with video.Video(path) as opened:
        images = torch.cat(
            [
                predictor.prepare(pixels, list(tracker(pixels, seconds).values())).images
                for _, seconds, pixels in opened.pictures()
            ]
        )

    def network() -> torch.Tensor:
        return torch.cat([predictor.classifier(batch).probabilities for batch in images.split(8)])

    if len(images) != FRAMES:
        raise ValueError(f"{len(images)} faces were found in {FRAMES} frames: nothing is timed")
    check(network(), faces(), "probabilities")
    drawn()
    case = f"{model}, {FRAMES} frames of {FRAME_SIZE[0]} x {FRAME_SIZE[1]}, one face"
    calls = {"network": network, "faces": faces, "drawn": drawn}
    compare(record, case, "frame", FRAMES, calls, options)


def film(path: Path) -> Path:
    """A video of a drawn face that moves over a smooth ground."""
    width, height = FRAME_SIZE
    side = height // 3
    coarse = np.random.default_rng(0).integers(60, 190, (12, 16, 3), dtype=np.uint8)
    ground = cv2.resize(coarse, FRAME_SIZE, interpolation=cv2.INTER_CUBIC)
    face = np.asarray(draw_face("happiness", side, (0,)).image)[..., ::-1]
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, FRAME_RATE, FRAME_SIZE)
    for number in range(FRAMES):
        frame = ground.copy()
        x = round((width - side) * number / FRAMES)
        y = round((height - side) * (0.5 + 0.4 * np.sin(number / 10)))
        frame[y : y + side, x : x + side] = face
        writer.write(frame)
    writer.release()
    return path


def onnx(record: Record, options: Options) -> None:
    """An exported network in onnxruntime."""
    for model in [options.model] if options.model else ["cfmrfn_tiny", "cfmrfn_base"]:
        path = random_checkpoint(options.folder, model)
        folder = export(path, ("onnx",), options.folder / model, card=False).folder
        in_torch = load_classifier(path, str(options.device))
        in_onnx = load_classifier(folder / "model.onnx", str(options.device))
        side = in_torch.about.image_size
        for batch in (1, BATCH):
            images = torch.randn(batch, 3, side, side)
            # a single call of the small network is too short to be timed well
            repeats = BATCH // batch if model == "cfmrfn_tiny" else 1

            def run(
                classifier: Classifier, images: torch.Tensor = images, repeats: int = repeats
            ) -> torch.Tensor:
                return [classifier(images).probabilities for _ in range(repeats)][-1]

            calls = {"network": partial(run, in_torch), "onnxruntime": partial(run, in_onnx)}
            check(calls["network"](), calls["onnxruntime"](), "probabilities")
            case = f"{model}, images of {side} x {side}, batches of {batch}"
            compare(record, case, "face", batch * repeats, calls, options)


def check(expected: torch.Tensor, found: torch.Tensor, what: str) -> None:
    """Raises ValueError where results differ by more than batches of other sizes do."""
    if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-3, atol=1e-5):
        raise ValueError(f"{what} differ: nothing is timed")


def compare(
    record: Record,
    case: str,
    unit: str,
    count: int,
    calls: Mapping[str, Callable[[], object]],
    options: Options,
) -> None:
    """Times calls in turns, and notes what each does in a second, as a part of the first's too.

    The part is that of the fastest calls: other work on the machine only ever adds time.

    Args:
        record: to which the measurements are added.
        case: what is computed.
        unit: of which a call computes `count`, such as "face".
        count: how many.
        calls: by name; each has been called once.
        options: of the run.
    """
    first, *_ = calls
    once_ms = sum(measure.clock_sample([call]) for call in calls.values())
    runs = measure.runs_within(options.seconds, once_ms)
    samples = measure.sample_in_turns(
        calls, measure.clock_sample, dict.fromkeys(calls, runs), rotate=True
    )
    timings = {name: Timing.of(values) for name, values in samples.items()}
    for name, timing in timings.items():
        details = {
            "unit": unit,
            "count": count,
            "per_second": count / timing.p50_ms * 1e3,
            f"of_{first}": min(samples[first]) / min(samples[name]),
        }
        record.measurements.append(Measurement(case, name, unit, "float32", timing, None, details))


def random_checkpoint(folder: Path, model: str) -> Path:
    """A checkpoint of a preset with random weights, for images as its recipe has them."""
    path = folder / f"{model}.pt"
    if not path.exists():
        size = 128 if model == "cfmrfn_tiny" else SIDE
        config = parse_config(["--model", model, "--image-size", str(size)])
        torch.manual_seed(0)
        network = checkpoint.build_network(config, CLASSES)
        about = checkpoint.About.of_run(config, EXPRESSIONS[:CLASSES]).to_dict()
        checkpoint.save(path, {"model": network.state_dict(), "about": about})
    return path


CASES: dict[str, Callable[[Record, Options], None]] = {
    "pictures": pictures,
    "video": moving_face,
    "onnx": onnx,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", default=",".join(CASES), help="(%(default)s)")
    parser.add_argument("--model", help="preset of the network (each case's own)")
    parser.add_argument("--device", help="cpu or cuda (the GPU where there is one)")
    command_line.add_options(parser, seconds=40.0)
    arguments = parser.parse_args()
    command_line.check_seconds(arguments.seconds)
    device = command_line.choose_device(arguments.device)
    if arguments.model is not None and not timm.is_model(arguments.model):
        known = ", ".join(timm.list_models("cfmrfn*"))
        raise UserError(f"--model must be one of {known}; got {arguments.model}")
    record = start_record("prediction", device)
    for name in choose("case", arguments.cases, CASES, record):
        with tempfile.TemporaryDirectory() as folder:
            options = Options(arguments.model, device, arguments.seconds, Path(folder))
            CASES[name](record, options)
    print(prediction_table(record))
    if arguments.json is not None:
        record.save(arguments.json)
        print(f"written: {arguments.json}")
    return 0


if __name__ == "__main__":
    command_line.run_main(main)
