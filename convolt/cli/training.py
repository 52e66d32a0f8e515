"""What `convolt train` does: data, model, plan, fit, results; everything it learns goes into a run folder."""

from __future__ import annotations

import json
import platform
import time
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convolt import __version__, devices, layers, optimizers
from convolt.callbacks import TerminateOnNaN
from convolt.cli import defaults, model_spec, optimizing, parts, recipe, results, resuming, say, starting
from convolt.cli.interrupt import Interrupts
from convolt.cli.options import Switch, parse_fusions, parse_size
from convolt.cli.train import TrainOptions
from convolt.configurable import to_json
from convolt.data.augment.words import parse
from convolt.data.batches import epoch_order
from convolt.data.budget import data_memory
from convolt.data.pictures import Pictures
from convolt.data.sources import Source
from convolt.errors import CheckpointError, ConvoltError
from convolt.formats.safetensors import describe
from convolt.layers.base import Layer
from convolt.models import Model
from convolt.models.summary import human, summarize
from convolt.profiler import GpuStat
from convolt.training import plots, sampling
from convolt.training.checkpoint import Checkpoint
from convolt.training.checkpoint.lock import is_locked
from convolt.training.checkpoint.signals import StopAtOnce
from convolt.training.run import RunFolder
from convolt.utils import set_random_seed


class Training:
    """One call of `convolt train`, step by step.

    Args:
        options: what the user asked for.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        optimizer = optimizing.make_optimizer(options)  # misspelt names are told before data are read
        sampling.get(options.sampler)
        if options.augment is not None:
            parse(options.augment)
        device = devices.resolve(options.device)
        set_random_seed(options.seed)
        self.source = load_source(options)
        self.parts = parts.split(self.source, options.validation_split)
        stem = options.name or f"{model_spec.short_name(options.model)}-{_folder_name(self.source)}"
        self.resumed = resuming.choose(options, stem, is_locked)
        self.before = {} if self.resumed is None else resuming.read_config(self.resumed)
        self.start = self._begin()
        self.model = self.start.model
        self.recipe = recipe.choose(self.model, self.source, options.loss, list(options.metrics), options.label_smoothing)
        self.model.compile(optimizer, self.recipe.loss, self.recipe.metrics, precision=options.precision.value, device=device,
                           fusions=parse_fusions(options.fusions), execution=options.execution.value, micro_batch=options.micro_batch,
                           steps_per_execution=options.steps_per_execution)
        self.model.class_names = list(self.source.class_names) if self.recipe.classes else None
        self.saves_whole = _can_be_described(self.model)
        self.folder = RunFolder.create(options.runs, stem) if self.resumed is None else RunFolder(self.resumed)
        self.summary = summarize(self.model)
        self.watch = GpuStat(self.folder.path) if options.gpustat is Switch.ON else None
        self.started = time.time()

    def _begin(self) -> starting.Start:
        """Makes the model; a resumed run has its own weights, and the options of the architecture that it began with."""
        options, resumed = self.options, self.resumed is not None
        words = resuming.model_options(self.before, options.model_option) if resumed else options.model_option
        return starting.begin(options.model, *parts.sample_shape(self.source), code=options.code, options=words,
                              weights=None if resumed else options.weights, freeze=options.freeze,
                              several=parts.has_several_labels(self.source))

    def run(self) -> int:
        """Trains, measures, writes, prints; returns the exit code."""
        self.show_plan()
        self.write_start()
        with Interrupts() as interrupts:
            try:
                with closing(self.watch) if self.watch else nullcontext():
                    self.fit()
            except StopAtOnce:  # twice: nothing more is written
                raise
            except KeyboardInterrupt:
                say.line("Stopped before the first epoch could begin.")
            except CheckpointError:  # the folder's own run may still go on as it was
                if self.resumed is not None:
                    self.folder.write_config(self.before)
                else:
                    self.write_config("stopped", time.time() - self.started, None)
                raise
            except ConvoltError:
                self.write_config("failed", time.time() - self.started, None)
                raise
            seconds = time.time() - self.started
            model_file = self.save()
            if interrupts.received is not None:
                self.write_config("stopped", seconds, None)
                say.line(f"Stopped. What there is lies in {self.folder.path}: {', '.join(self.files())}", "yellow")
                say.commands([["convolt", "train", "--resume", str(self.folder.path)]])
                return interrupts.exit_code
            result = results.measure(self.model, self.parts.test, self.batch_size or 128, classes=self.recipe.classes,
                                     several=self.recipe.several)
            self.write_skipped()
            self.write_config("finished", seconds, result.numbers)
            results.draw(self.folder, result, self.source.class_names)
            self.show_result(result, seconds, model_file)
        return 0

    def fit(self) -> None:
        """Calls `fit` with what was asked for."""
        validation = self.parts.validation
        steps, seconds = resuming.parse_every(self.options.checkpoint_every)
        self.model.fit(
            *self.parts.train.given,
            batch_size=self.options.batch_size,
            epochs=self.options.epochs,
            validation_data=None if validation is None else validation.x if isinstance(validation.x, Pictures) else validation.given,
            callbacks=[self.folder.history, TerminateOnNaN(raise_error=True), *([] if self.watch is None else [self.watch])],
            verbose=self.options.verbose.for_fit,
            seed=self.options.seed,
            checkpoint=Checkpoint(self.folder.path, every_steps=steps, every_seconds=seconds),
            resume=False if self.resumed is None else "auto",
            resume_allow=self.options.allow_change,
            augment=self.options.augment,
            sampler=self.options.sampler,
        )

    # -- what is printed -------------------------------------------------------------------------------------------

    def show_plan(self) -> None:
        """Prints what will be done, and how."""
        began = "Training" if self.resumed is None else f"Going on with {self.resumed}:"
        say.heading(f"{began} {self.options.model} on {self.options.data}")
        say.rows(self.plan_rows())
        say.line()

    def plan_rows(self) -> list[tuple[str, str]]:
        """Returns the plan as labels and sentences."""
        train, options = self.parts.train, self.options
        steps = f" of {say.plural(-(-len(train) // self.batch_size), 'step')}" if self.batch_size else ""
        summary = self.summary
        shape = parts.describe_shape(train.x.shape[1:])
        classes = f", {say.plural(self.recipe.classes, 'class')}" if self.recipe.classes else ""
        held_out = "" if self.parts.test is train else f", {len(self.parts.test):,} to test"
        model = f"{summary.trainable + summary.frozen:,} parameters, {human(summary.flops)}FLOPs per sample"
        return [
            ("data", f"{len(train):,} samples of {shape} {train.dtype} to train{held_out}{classes}{self._reading_text()}"),
            ("validation", self._validation_text()),
            ("model", model),
            *self.start.rows,
            *([("recipe", text)] if (text := defaults.recipe_text(self.options)) else []),
            (
                "training",
                f"{say.plural(options.epochs, 'epoch')}{steps}, batch {options.batch_size}, "
                f"{self._optimizer_text()}",
            ),
            *([("augment", self.options.augment)] if self.options.augment else []),
            *([("sampler", self.options.sampler)] if self.options.sampler else []),
            ("loss", self.recipe.loss_text),
            ("device", f"{devices.describe(self.device)}, {self.precision}"),
            ("seed", str(options.seed)),
            ("run folder", f"{self.folder.path}"),
            *([] if self.saves_whole else [("saved", "weights alone: the architecture is PyTorch code, not Convolt layers")]),
        ]

    def _reading_text(self) -> str:
        """Returns where the pictures were read from and how many were left out, where that is worth a word."""
        skipped = self.source.skipped
        note = f", {self.source.note}" if self.source.note else ""
        note += ", too large to be kept decoded" if isinstance(self.parts.train.x, Pictures) else ""
        return note + (f"; {say.plural(len(skipped), 'file')} left out, see skipped.csv" if skipped else "")

    def _validation_text(self) -> str:
        validation = self.parts.validation
        if validation is None:
            return "none: results are on the training set itself"
        advice = "; --validation-split 0.1 keeps it unseen until the end" if validation.name == "the test set" else ""
        return f"{validation.name} ({len(validation):,} samples), after each epoch{advice}"

    def _optimizer_text(self) -> str:
        schedule = self.options.schedule
        rate = optimizing.peak_rate(self.options)
        averaged = ", weights averaged at the end" if isinstance(self.model.optimizer, optimizers.SWA) else ""
        return f"{self.options.optimizer}, learning rate {rate:g}{'' if schedule == 'constant' else f' at most ({schedule})'}{averaged}"

    def show_result(self, result: results.Result, seconds: float, model_file: Path) -> None:
        """Prints how good the model is, where everything lies, and what can be done next."""
        say.line()
        say.heading(f"Result: {results.sentence(result)}")
        mistakes = results.confusions(result, self.source.class_names)
        say.rows(
            [
                ("trained in", say.duration(seconds)),
                *([("gpustat", self.watch.describe())] if self.watch else []),
                *([("mistakes", f"most often {mistakes}")] if mistakes else []),
                ("files", f"{self.folder.path}: {', '.join(self.files())}"),
            ]
        )
        if self.saves_whole:
            say.commands(self._next(str(model_file)))

    def _next(self, file: str) -> list[list[str]]:
        own = [
            layer for layer in self.model.modules() if isinstance(layer, Layer) and type(layer).__name__ not in layers.registry
        ]
        code = self.options.code or (
            self.options.model.partition(".py")[0] + ".py" if model_spec.is_code(self.options.model) else None
        )
        extra = ["--code", code] if own and code else []
        return [
            ["convolt", "evaluate", file, "--data", self.options.data, *extra],
            ["convolt", "predict", file, "PICTURE", *extra],
            ["convolt", "summary", file, *extra],
        ]

    @property
    def batch_size(self) -> int | None:
        """Samples per step; None where they are still to be measured."""
        asked = self.options.batch_size
        return asked if isinstance(asked, int) else self.model.trainer.batch_size

    # -- what is written -------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return self.model.trainer.device

    @property
    def precision(self) -> str:
        """What the model is trained in; "auto" until a plan has chosen."""
        plan = self.model.trainer.plan
        return str(self.options.precision.value) if plan is None else plan.precision

    def write_start(self) -> None:
        """Writes what is known before the first step."""
        if self.resumed is None:
            self.folder.write_command(self._command())
        self.write_config("running", None, None)
        self.write_skipped()
        train = self.parts.train
        if len(train.x.shape) == 4:
            first = epoch_order(len(train), self.options.seed, 0)[: min(self.batch_size or plots.MAX_IMAGES, plots.MAX_IMAGES)].numpy()
            x, rows = parts.read(train.x, first)
            labels, names = None, list(self.source.class_names) or None
            if self.recipe.several:
                (labels,), names = parts.label_sets([train.y[rows]], self.source.class_names)
            elif self.recipe.classes:
                labels = parts.class_numbers(train.y[rows])
            self.folder.write_first_batch(x, labels, names)

    def write_skipped(self) -> None:
        """Lists the files that were left out so far."""
        source = self.source
        streamed = [bad for x in (source.x_train, source.x_test, source.x_val) if isinstance(x, Pictures) for bad in x.left_out]
        if skipped := {*source.skipped, *streamed}:
            self.folder.write_skipped(sorted((bad.path, bad.reason) for bad in skipped))

    def write_config(self, status: str, seconds: float | None, result: dict[str, float] | None) -> None:
        """Writes `config.json`: options, and what became of each `auto`."""
        config = {
            "status": status,
            "options": self.options.as_json(),
            "command": self._command(),
            "seed": self.options.seed,
            "plan": self._plan_config(),
            "data": self._data_config(),
            "model": {
                "class": type(self.model).__name__,
                "options": self.start.options,
                "parameters": self.model.count_params(),
                "flops_per_sample": self.summary.flops,
            },
            "optimizer": optimizers.serialize(self.model.optimizer),
            "loss": to_json(self.recipe.loss),
            "metrics": self.recipe.metrics,
            "versions": versions(),
            "started": self.before.get("started") or time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started)),
            "resumed": self.before.get("resumed", 0) + (self.resumed is not None),
            "seconds": seconds,
            **({"gpustat": self.watch.summary()} if self.watch and seconds is not None else {}),
            "result": result,
        }
        self.folder.write_config(config)

    def _command(self) -> list[str]:
        """Returns the line that repeats the run, with the options of the architecture that pictures and weights decided."""
        words = tuple(f"{name}={text}" for name, text in self.start.options.items())
        return replace(self.options, model_option=words).as_command()

    def _plan_config(self) -> dict[str, Any]:
        """Returns where and how the steps run; what `fit` measured is in it once it has."""
        known = {"device": str(self.device), "device_name": devices.describe(self.device).name, "precision": self.precision}
        plan = self.model.trainer.plan
        if plan is None:
            return {**known, "threads": torch.get_num_threads()}
        return {**known, "batch_size": self.batch_size, **plan.to_json()}

    def _data_config(self) -> dict[str, Any]:
        train, validation, test = self.parts.train, self.parts.validation, self.parts.test
        return {
            "name": self.source.name,
            "shape": list(train.x.shape[1:]),
            "dtype": train.dtype,
            "streamed": isinstance(train.x, Pictures),
            "class_names": list(self.source.class_names),
            "train": len(train),
            "validation": None if validation is None else len(validation),
            "validation_is": None if validation is None else validation.name,
            "test": len(test),
            "test_is": test.name,
        }

    def save(self) -> Path:
        """Writes the model; for a wrapped PyTorch module its weights."""
        if self.saves_whole:
            self.model.save(self.folder.model)
            return self.folder.model
        path = self.folder.path / "weights.safetensors"
        self.model.save_weights(path)
        return path

    def files(self) -> list[str]:
        """Returns the names of the files in the run folder, the model first."""
        names = sorted(path.name for path in self.folder.path.iterdir() if path.is_file())
        return sorted(names, key=lambda name: not name.endswith(".safetensors"))


def versions() -> dict[str, str]:
    """Returns what the figures of a run may depend on."""
    return {
        "convolt": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def load_source(options: TrainOptions) -> Source:
    """Loads DATA as `starting.load_data` does; what fits into memory is decoded."""
    return starting.load_data(options.model, options.data, parse_size(options.image_size), options.color_mode, options.code,
                              _left_undecoded(options), options.decoder.value)


def _left_undecoded(options: TrainOptions) -> int | None:
    """Returns the bytes of pictures beyond which `fit` streams them; a run that is resumed reads as it did before."""
    if options.resume in (None, resuming.AUTO, resuming.NEVER):
        return data_memory()
    return 0 if dict(resuming.read_config(Path(str(options.resume))).get("data") or {}).get("streamed") else None


def _folder_name(source: Source) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in source.name)[:60] or "data"


def _can_be_described(model: Model) -> bool:
    try:
        json.dumps(describe(model))
    except ConvoltError:
        return False
    return True


def run(options: TrainOptions) -> int:
    """Runs `convolt train` and returns its exit code."""
    return Training(options).run()
