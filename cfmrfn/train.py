"""Train CFMRFN: `python -m cfmrfn.train`, which needs no options.

`Trainer(config).train()` is the same for notebooks. Several devices:
`torchrun --nproc-per-node N -m cfmrfn.train ...`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cfmrfn import checkpoint, errors
from cfmrfn.batches import EpochBatches, evaluation_loader, training_loader
from cfmrfn.config import Config, continued, parse_config, run_folder_of
from cfmrfn.errors import CheckpointError, ConfigError, DataError, TrainingError, counted
from cfmrfn.evaluation import HOW_CHOSEN, evaluate
from cfmrfn.figures.pictures import plot_batch, plot_confusion, plot_curves
from cfmrfn.losses import ExpressionLoss
from cfmrfn.optim import (
    build_ema,
    build_optimizer,
    learning_rate_factor,
    load_ema_state,
    load_optimizer_state,
    set_learning_rate,
)
from cfmrfn.process import command
from cfmrfn.process.distributed import World, synchronise_batchnorm
from cfmrfn.process.signals import StopSignal
from cfmrfn.training import results, run_folder
from cfmrfn.training.event_file import EventFile
from cfmrfn.training.images import (
    MOST_NAMED,
    RunImages,
    framing_of,
    training_dataset,
    weights_of_classes,
)
from cfmrfn.training.progress import Progress, Row
from cfmrfn.training.results import (
    best_row,
    chosen_rows,
    columns_of,
    held_out_report,
    unequal_epochs,
)
from cfmrfn.training.run_folder import RunFolder
from cfmrfn.training.step import StepResult, TrainingStep
from cfmrfn.weights import initial_weights

MEMORY_OPTIONS = (
    "start a new run with a lower --batch-size or --image-size, with --accumulate 2 or more, which "
    "takes a batch in parts, or with --precision bf16"
)


MOST_SHOWN = 32  # images of the first batch in its picture


class Interrupted(Exception):
    """The user stopped the run, which was saved and said how to go on."""


class Trainer:
    """A run, new or resumed: `Trainer(config).train()` gives its folder's path.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: what the user can correct, see
            `errors.USER_ERRORS`.
    """

    def __init__(self, config: Config) -> None:
        if config.run.resume is None:
            config = initial_weights.with_chosen_landmarks(
                initial_weights.with_network_of_init(config)
            )
        else:
            self.folder = RunFolder(run_folder_of(config.run.resume))
            config = continued(config, self.folder.path)
        self.config = config
        optim, images, run = config.optim, config.images, config.run
        self.world = World(run.device)
        if optim.batch_size % (self.world.size * optim.accumulate):
            raise ConfigError(
                f"batch-size must be a multiple of processes x accumulate, {self.world.size} x "
                f"{optim.accumulate}; got {optim.batch_size}"
            )
        if run.resume is None:
            initial_weights.check_backbones(config)
        if run.resume is not None and images.data is not None and not images.data.is_dir():
            raise DataError(
                f"the images of {self.folder.path} are no longer in {images.data}: say with --data "
                "where they are now"
            )

        if run.resume is not None:
            self.world.on_main(self.folder.hold)

        # The state to resume from; a run killed before its first checkpoint starts anew
        saved = framing = None
        if run.resume is not None and self.folder.last.exists():
            saved, about = checkpoint.load_training(self.folder.last)
            framing = about.framing
            self._check_is_own(about.config)
        elif run.resume is not None and (self.folder.path / "metrics.csv").exists():
            raise CheckpointError(
                f"{self.folder.last} is missing, and with it the epochs in metrics.csv: put it "
                "back, or start a new run"
            )

        # Data
        self.images = RunImages(config, self.world)
        splits, caches = self.images.splits, self.images.caches
        self.class_names = splits.class_names
        self.dataset = training_dataset(splits, images, optim.seed, run.on_broken, caches.train)
        self.batches = EpochBatches(
            [sample.label for sample in splits.train],
            optim.batch_size,
            optim.seed,
            images.balanced,
            self.world,
        )
        self.loader = training_loader(self.dataset, self.batches, run.workers)
        if framing is None:
            framing = self.world.on_main(lambda: framing_of(splits.train))
        self.about = checkpoint.About.of_run(
            config.absolute(), self.class_names, framing, splits.layout
        )
        evaluated = splits.evaluated()
        cache_of = {"val": caches.validation, "test": caches.held_out}
        self.evaluation_loaders = {
            name: evaluation_loader(
                samples,
                self.about,
                batch_size=optim.batch_size // (self.world.size * optim.accumulate),
                world=self.world,
                workers=run.workers,
                cache=cache_of[name],
            )
            for name, samples in evaluated.items()
        }
        self.evaluated_duplicates = {
            name: self.images.are_duplicates(samples)[self.world.rank :: self.world.size]
            for name, samples in evaluated.items()
        }
        # without validation images the best epoch is chosen on the held-out ones
        self.chosen_on = next(iter(self.evaluation_loaders))

        # Network and optimizer
        torch.manual_seed(optim.seed)
        self.network = checkpoint.build_network(config, len(self.class_names))
        remarks = initial_weights.load(self.network, config, self.about) if saved is None else []
        try:
            self.network.freeze(optim.freeze)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.network.to(self.world.device)
        if self.world.size > 1 and optim.sync_batchnorm:
            synchronise_batchnorm(self.network)
        self.ema = build_ema(self.network, optim.ema, optim.ema_warmup) if optim.ema else None
        self.optimizer = build_optimizer(self.network, optim)
        model: nn.Module = self.network
        if self.world.size > 1:
            model = DistributedDataParallel(model)
        if run.compile:
            # around the other wrapper, which knows the network's parameters by their names
            model = cast(nn.Module, torch.compile(model))
        self.class_weights = weights_of_classes(splits, config)
        criterion = ExpressionLoss(
            optim.ce_weight, optim.smooth_weight, optim.label_smoothing, self.class_weights
        )
        self.step = TrainingStep(self.network, model, self.optimizer, criterion, optim, self.world)

        # Run folder, and where the run stands
        self.progress = Progress()
        if run.resume is None:
            self.folder = self.world.on_main(lambda: run_folder.create(config))
        if saved is not None:
            remarks = self._load_state(saved)
            self.world.on_main(self._check_best)
        if run.resume is not None:
            is_complete = self.progress.epoch >= optim.epochs
            self.world.on_main(lambda: self.folder.reopen(config, is_complete=is_complete))
        self.log(self._description(remarks))

    def train(self) -> Path:
        """Trains to the last epoch, reports, and returns the path of the run folder."""
        epochs = self.config.optim.epochs
        with StopSignal() as stop, self._progress_bar() as bar, self._tensorboard() as board:
            while self.progress.epoch < epochs:
                started = waiting_since = time.perf_counter()
                waited = 0.0
                self.batches.start(self.progress.epoch, self.progress.step)
                self.dataset.set_epoch(self.progress.epoch)
                self.network.train()
                images_seen = len(self.batches) * self.batches.batch_size
                for images, targets in self._training_batches():
                    waited += time.perf_counter() - waiting_since
                    if not self._step_number() and self.world.is_main:
                        self._show(images, targets)
                    result = self._train_step(images, targets)
                    bar.update(self.batches.batch_size)
                    bar.set_postfix(epoch=self.progress.epoch + 1, loss=f"{result.loss:.3f}")
                    if board is not None:
                        board.add_scalar("step/loss", result.loss, self._step_number())
                    every = self.config.run.checkpoint_every
                    if every is not None and self.progress.step % every == 0:
                        self._save()
                    self._stop_if_asked(stop)
                    waiting_since = time.perf_counter()
                seconds = time.perf_counter() - started
                self._finish_epoch(
                    f"{images_seen / seconds:.0f} images/s, {waited / seconds:.0%} of it waiting "
                    "for them",
                    board,
                )
                self._stop_if_asked(stop)
        return self._report()

    def _training_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        try:
            yield from self.loader
        except DataError as error:
            if self.world.size == 1:  # several would have to save together, and only one is here
                self._save()
            raise self._unreadable(error) from error

    def _train_step(self, images: torch.Tensor, targets: torch.Tensor) -> StepResult:
        """One optimizer step on one batch."""
        optim, progress = self.config.optim, self.progress
        # counted from the middle of the step, so that warm-up begins above 0
        epoch = (self._step_number() + 0.5) / self.batches.steps
        set_learning_rate(self.optimizer, learning_rate_factor(optim, epoch))
        result = self.step(images, targets, self._step_number())
        # a lower loss scale may make the gradient finite, but never the loss
        recoverable = math.isfinite(result.loss) and self.step.may_overflow
        if not (result.applied or recoverable):
            raise TrainingError(self._not_finite(result))
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        progress.step += 1
        progress.loss_sum += result.loss
        progress.correct += result.correct
        return result

    def _finish_epoch(self, speed: str, board: EventFile | None) -> None:
        """Evaluates, records the epoch, and saves; `speed` is for the log."""
        # also before it evaluates: whatever ends that, a resumed run goes on here
        self._save()
        progress, network = self.progress, self._evaluated_network()
        # what is saved; without --sync-batchnorm every process has batch statistics of its own
        self.world.share(network.buffers())
        row: Row = {
            "epoch": progress.epoch + 1,
            # of all that --layer-decay does not slow down
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": progress.loss_sum / self.batches.steps,
            "train_accuracy": progress.correct / (self.batches.steps * self.batches.batch_size),
        }
        for name, loader in self.evaluation_loaders.items():
            precision = self.config.optim.precision
            try:
                report = evaluate(
                    network,
                    loader,
                    self.class_names,
                    self.world,
                    precision,
                    self.evaluated_duplicates[name],
                )
            except DataError as error:
                raise self._unreadable(error) from error
            row |= columns_of(name, report)
        history = [*progress.history, row]
        self.progress = Progress(progress.epoch + 1, history=history)
        self.progress.best_weights = progress.best_weights

        if self.world.is_main:
            if best_row(history, self.chosen_on) is row:
                self.progress.best_weights = checkpoint.digest_of(network)
                self.folder.save(self.folder.best, self._weights(self.chosen_on))
            self.folder.write_metrics(history)
            with self.folder.file("curves.png") as path:
                plot_curves(path, history)
            if board is not None:
                _add_epoch(board, row)
        self._save()
        scores = ", ".join(f"{n} {row[f'{n}_accuracy']:.3f}" for n in self.evaluation_loaders)
        self.log(
            f"epoch {row['epoch']:3}/{self.config.optim.epochs}  loss {row['train_loss']:.4f}  "
            f"accuracy: train {row['train_accuracy']:.3f}, {scores}  {speed}"
        )
        broken = self.world.sum(self.dataset.is_broken.int().to(self.world.device)).nonzero()
        if len(broken):
            names = [self.images.splits.train[index].path for index in broken.flatten().tolist()]
            more = f"; and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            self.log(
                f"skipped {len(names)} unreadable images so far, each for the next one: "
                f"{', '.join(names[:MOST_NAMED])}{more}"
            )

    def _report(self) -> Path:
        """Prints and writes the final results, and returns the path of the run folder."""
        if self.world.is_main:
            history, lines, held_out = self.progress.history, [], {}
            weights = {
                self.chosen_on: self.progress.best_weights,
                None: checkpoint.digest_of(self._evaluated_network()),
            }
            for chosen_on, row in chosen_rows(history, self.chosen_on).items():
                report = held_out_report(row, self.class_names)
                lines += results.in_lines(row, report, HOW_CHOSEN[chosen_on])
                held_out[chosen_on or "last"] = results.as_dict(row, report, weights.get(chosen_on))
            row = best_row(history, self.chosen_on)
            best = held_out_report(row, self.class_names)
            title = f"{self.images.splits.name}, held out, epoch {row['epoch']}"
            with self.folder.file("confusion.png") as path:
                plot_confusion(path, best, title)
            self.folder.write_report(
                {**self.images.as_dict(), "chosen_on": self.chosen_on, "held_out": held_out}
            )
            self.log("accuracy on the held-out images:\n" + "\n".join(lines))
            for line in unequal_epochs(history, {}):
                self.log(line)
            self.log(f"held-out accuracy {best.accuracy:.4f} over {best.images} images")
            self.log(f"run folder {self.folder.path}")
        self.world.barrier()
        return self.folder.path

    def log(self, text: str) -> None:
        """Prints `text` and keeps it in `log.txt`, on the main process."""
        if self.world.is_main:
            self.folder.log(text)

    # State on disk

    def _evaluated_network(self) -> nn.Module:
        return self.network if self.ema is None else self.ema.module

    def _weights(self, chosen_on: str | None) -> dict[str, Any]:
        """The part of a checkpoint that using the network needs."""
        epoch = self._step_number() // self.batches.steps
        about = dataclasses.replace(self.about, epoch=epoch, chosen_on=chosen_on)
        return {"model": self._evaluated_network().state_dict(), "about": about.to_dict()}

    def _save(self) -> None:
        """Writes `last.pt`."""
        if self.world.is_main:
            training = {
                "data": self.images.fingerprint,
                "file_sizes": self.images.file_sizes,
                "network": self.network.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.step.scaler.state_dict(),
                "progress": dataclasses.asdict(self.progress),
            }
            self.folder.save(self.folder.last, self._weights(None) | {"training": training})
        self.world.barrier()

    def _load_state(self, training: dict[str, Any]) -> list[str]:
        """Loads what a checkpoint has for resuming; returns what the log says of its images."""
        # former runs left the images that they skipped out of the fingerprint
        images = self.images
        if training.get("data") not in (images.fingerprint, images.splits.fingerprint()):
            where = self.config.images.data
            raise CheckpointError(
                f"{self.folder.path} was trained on other images or labels than those of "
                f"{images.splits.name}{'' if where is None else f' in {where}'} now: give its own "
                "images with --data, or start a new run"
            )
        with checkpoint.fitting(f"{self.folder.last} does not fit the run"):
            self.network.load_state_dict(training["network"])
            if self.ema is not None:
                load_ema_state(self.ema, training["ema"])
            load_optimizer_state(self.optimizer, training["optimizer"])
            self.step.load_scaler_state(training["scaler"])
            self.progress = Progress.from_dict(
                training["progress"],
                steps=self.batches.steps,
                classes=len(self.class_names),
                splits=self.evaluation_loaders,
            )
        remarks = unequal_epochs(
            self.progress.history,
            {name: len(samples) for name, samples in images.splits.evaluated().items()},
        )
        # former runs did not keep the sizes
        sizes = training.get("file_sizes", images.file_sizes)
        changed = int((sizes != images.file_sizes).sum())
        if not changed:
            return remarks
        return [
            *remarks,
            f"{changed} of {counted(len(sizes), 'image file')} have another size than when the run "
            "was last saved: where their pixels are others too, its weights come of both",
        ]

    def _check_is_own(self, saved: Config) -> None:
        """Checks that `last.pt`, which was saved under this configuration, is one of this run."""
        # where its files lay then does not matter
        mine, its = self.config.without_folders(), saved.without_folders()
        if changed := mine.differences(its):
            raise CheckpointError(
                f"{self.folder.last} is of a run with {'; '.join(changed)}: put the file of this "
                "run in its place, or config.yaml as it was"
            )

    def _check_best(self) -> None:
        """Checks that `best.pt` has the weights that the run chose."""
        progress, path = self.progress, self.folder.best
        if progress.best_weights is None:
            return
        why = "it has other weights"
        try:
            network, about = checkpoint.load_network(path)
            is_own = checkpoint.digest_of(network) == progress.best_weights
            # killed between writing the one and the other
            is_next = progress.step == self.batches.steps and about.epoch == progress.epoch + 1
            if is_own or is_next:
                return
        except CheckpointError as error:
            why = str(error)
        epoch = best_row(progress.history, self.chosen_on)["epoch"]
        raise CheckpointError(
            f"{path} is no longer what the run chose, the network of epoch {epoch}: {why}. Put it "
            f"back, or start a new run with --init {errors.argument(self.folder.last)}"
        )

    # Texts

    def _step_number(self) -> int:
        return self.progress.epoch * self.batches.steps + self.progress.step

    def _description(self, remarks: list[str]) -> str:
        optim = self.config.optim
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.network.parameters())
        lines = [
            f"run folder {self.folder.path}",
            *self.images.description(),
            self._framing(),
            f"{self.config.network.preset}: {trained / 1e6:.3g} M trained parameters of "
            f"{total / 1e6:.3g} M, on {self.world.device}, {self.world.size} process(es)",
            f"{counted(optim.epochs, 'epoch')} of {counted(self.batches.steps, 'step')} of "
            f"{counted(optim.batch_size, 'image')}, "
            + (f"SAM (rho {optim.rho}) over {optim.optimizer}" if optim.rho else optim.optimizer),
        ]
        lines += [*self.config.without_effect(), *self.images.splits.without_effect]
        if optim.freeze:
            lines.append(f"frozen: {', '.join(optim.freeze)}")
        if self.class_weights is not None:
            pairs = zip(self.class_names, self.class_weights.tolist(), strict=True)
            lines.append("class weights: " + ", ".join(f"{name} {w:.3g}" for name, w in pairs))
        lines += remarks
        kept = self.images.caches.train
        if kept is not None and kept.is_grey and not self.config.network.gray:
            lines.append(
                "all images to train on are grey: without --gray True the network may go wrong on "
                "photographs in colour"
            )
        if self.world.device.type == "cpu" and torch.backends.mps.is_available():
            lines.append("Apple's GPU is not used, as it is untried; --device mps tries it")
        if self._step_number():
            lines.append(self._place())
        return "\n".join(lines)

    def _place(self) -> str:
        """Where a resumed run goes on, or how, if it is complete."""
        optim, progress = self.config.optim, self.progress
        if progress.epoch >= optim.epochs:
            folder = errors.argument(self.folder.path)
            further = f"with --resume {folder} and more --epochs"
            if optim.schedule == "cosine":
                further = f"in a new run with --init {folder}, as the cosine schedule has ended"
            return f"complete: {counted(progress.epoch, 'epoch')} done; train on {further}"
        is_within = progress.step < self.batches.steps
        where = f"step {progress.step + 1}" if is_within else "its evaluation"
        return f"resumed at epoch {progress.epoch + 1}, {where}"

    def _framing(self) -> str:
        if self.about.framing is None:
            return "how the images frame their faces is unknown: see cfmrfn predict --framing"
        (left, eyes), (right, _), _, (_, mouth), _ = self.about.framing
        return (
            f"the images have eyes {right - left:.0%} of the side apart at {eyes:.0%} of the "
            f"height, and the mouth at {mouth:.0%}: cfmrfn predict frames faces so"
        )

    def _show(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Draws the images of a batch, as they are after augmentation, and their labels."""
        images, targets = self.network.luma(images[:MOST_SHOWN]), targets[:MOST_SHOWN].cpu()
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.about.mean, self.about.std))
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).to("cpu", torch.uint8)
        if self.about.color == "BGR":
            pixels = pixels.flip(1)
        captions = (
            [self.class_names[label] for label in targets.tolist()]
            if targets.ndim == 1
            else [f"{self.class_names[votes.argmax()]} {votes.max():.0%}" for votes in targets]
        )
        with self.folder.file("batch.png") as path:
            plot_batch(path, pixels.permute(0, 2, 3, 1).numpy(), captions)

    def _unreadable(self, error: DataError) -> DataError:
        return DataError(
            f"{errors.text_of(error)}. Put a readable file in its place, or go on without it: "
            f"python -m cfmrfn.train --resume {errors.argument(self.folder.path)} --on-broken skip"
        )

    def _not_finite(self, result: StepResult) -> str:
        """Names the batch whose loss or gradient is not finite; the log gets all its files."""
        names = [
            Path(self.images.splits.train[index].path).name
            for index, _ in self.batches.batch(self.progress.step)
        ]
        self.log(f"batch: {' '.join(names)}")
        what = "gradient" if math.isfinite(result.loss) else "loss"
        more = f" and {len(names) - 3} more images" if len(names) > 3 else ""
        return (
            f"the {what} is not finite at epoch {self.progress.epoch + 1}, step "
            f"{self.progress.step + 1}, batch of {', '.join(names[:3])}{more} "
            f"(all in {self.folder.path / 'log.txt'}); try a lower --lr, or --clip"
        )

    def _progress_bar(self) -> tqdm:
        epoch_images = self.batches.steps * self.batches.batch_size
        return tqdm(
            total=self.config.optim.epochs * epoch_images,
            initial=self._step_number() * self.batches.batch_size,
            unit="img",
            smoothing=0.05,
            dynamic_ncols=True,
            disable=None if self.world.is_main else True,  # None: shown on a terminal
        )

    def _tensorboard(self) -> AbstractContextManager[EventFile | None]:
        if not (self.config.run.tensorboard and self.world.is_main):
            return nullcontext()
        done = self._step_number()
        first = done + 1 if done else 0  # events are numbered after their step
        board = EventFile(self.folder.path / "tensorboard", first, self.log)
        for row in self.progress.history:  # of which former files may lack some
            _add_epoch(board, row)
        return board

    def _stop_if_asked(self, stop: StopSignal) -> None:
        asked = torch.tensor(float(stop.asked), device=self.world.device)
        if self.world.sum(asked):
            self._save()
            progress = self.progress
            where = f"in epoch {progress.epoch + 1} after step {progress.step}"
            if progress.epoch == self.config.optim.epochs:
                where = "after the last epoch, before the report of its results"
            self.log(
                f"stopped {where}, and saved; go on with: python -m cfmrfn.train --resume "
                f"{errors.argument(self.folder.path)}"
            )
            raise Interrupted


def _add_epoch(board: EventFile, row: Row) -> None:
    """Adds an epoch's points, which are numbered after it."""
    for key, value in row.items():
        if isinstance(value, float):
            board.add_scalar(key.replace("_", "/", 1), value, row["epoch"])


@command.memory_options(MEMORY_OPTIONS)
def main(args: list[str] | None = None, prog: str = "python -m cfmrfn.train") -> None:
    """The command line."""
    config = parse_config(sys.argv[1:] if args is None else args, prog=prog)
    trainer = Trainer(config)
    interrupted = False
    try:
        trainer.train()
    except Interrupted:
        interrupted = True
    # not after an error: the other processes may wait for this one, which must end
    trainer.world.close()
    if interrupted:
        sys.exit(130)


if __name__ == "__main__":
    command.run(main)
