"""`Trainer`: what `compile` fixed, and how data and model are made ready for the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convolt import devices, losses, optimizers
from convolt import metrics as metric_classes
from convolt.compiler import Plan, check_fusions
from convolt.compiler.execute import Pace
from convolt.compiler.replay import ReplayedStep
from convolt.data.batches import Batch, Resident, Streamed
from convolt.errors import ArgumentError, DataError, NonFiniteError, did_you_mean, explain
from convolt.training import given, inputs, loop, nonfinite
from convolt.training.adapting import adapt_layers
from convolt.training.batch_size import AUTO
from convolt.training.callbacks import History
from convolt.training.checkpoint.capture import Live
from convolt.training.checkpoint.keeper import CheckpointKeeper
from convolt.training.checkpoint.options import Checkpoint, check_resume
from convolt.training.checkpoint.session import Session
from convolt.training.checkpoint.settings import data_settings, model_settings, optimizer_settings
from convolt.training.checkpoint.signals import StopAtOnce
from convolt.training.checks import check_count
from convolt.training.heads import Head, check_names, make_heads
from convolt.training.hooks import CallbackList, scalars
from convolt.training.memory import Room
from convolt.training.optimizing import forget_other_weights
from convolt.training.own_step import make_step
from convolt.training.planning import EXECUTIONS, PRECISIONS, Planning
from convolt.training.progress import Progress
from convolt.training.sampling import make_drawing
from convolt.training.skipped import SkippedFiles
from convolt.training.statistics import update_statistics
from convolt.training.step import Step, enter, flat_outputs


class Trainer(Planning):
    """Optimizer, losses, metrics, precision and device of one model, as `compile` fixed them.

    Args:
        model: a module with `input_names`, `output_names`, `input_dtypes`, `input_shapes`, `build_for`, `run_once`.
        optimizer, loss, metrics, loss_weights, weighted_metrics: as in `Model.compile`.
        precision: "auto", "float32" or "bfloat16"; "auto" trains in bfloat16 where that was measured to be faster and right.
        device: "auto" or a device's name.
        fusions: "auto", "none", "all" or names of rewrites.
        execution: "auto" (the whole step recorded and replayed where that works, `torch.compile` where a long run repays it),
            "replay" (the former alone), "eager" (neither), or "compile" (`torch.compile` in any case).
        micro_batch: most samples that are computed at once; None: whole batches, while they fit.
        steps_per_execution: steps between two calls of the callbacks, in one graph where that works; "auto": as many as nobody notices.
    """

    def __init__(self, model: Any, optimizer: Any, loss: Any, metrics: Any, loss_weights: Any, weighted_metrics: Any, *,
                 precision: str, device: Any, fusions: Any = "auto", execution: str = "auto", micro_batch: int | None = None,
                 steps_per_execution: int | str = 1) -> None:
        check_fusions(fusions)
        check_count("compile(micro_batch)", micro_batch)
        check_count("compile(steps_per_execution)", None if steps_per_execution == AUTO else steps_per_execution)
        self.steps_per_execution = AUTO if steps_per_execution == AUTO else int(steps_per_execution or 1)
        if execution not in EXECUTIONS:
            raise ArgumentError(explain("compile(execution)", repr(execution), f"one of {list(EXECUTIONS)}",
                                        did_you_mean(str(execution), EXECUTIONS)))
        if precision != "auto" and precision not in PRECISIONS:
            raise ArgumentError(explain("compile(precision)", repr(precision), f"'auto' or one of {list(PRECISIONS)}",
                                        did_you_mean(str(precision), ["auto", *PRECISIONS])))
        self.model = model
        self.optimizer = optimizers.get(optimizer)
        self.spec = {"loss": loss, "loss_weights": loss_weights, "metrics": metrics, "weighted_metrics": weighted_metrics}
        self.precision = precision
        self.device = devices.resolve(device)
        if PRECISIONS.get(precision) == torch.bfloat16:
            devices.require_bfloat16(self.device)
        self.fusions = fusions
        self.execution = execution
        self.micro_batch = micro_batch
        self.history: History | None = None
        self.plan: Plan | None = None
        self.batch_size: int | None = None  # of the last fit, where it was given or found
        self._heads: list[Head] = []
        self._step: Step | None = None
        self._bound: list[Tensor] = []
        self._pace = Pace()
        self._replay: ReplayedStep | None = None
        self._notes: list[str] = []
        if model.output_names:  # misspelt names are told now, not when fit starts
            self._heads = self._make_heads(model.output_names)
        else:
            check_names(loss, losses.get)
            check_names([metrics, weighted_metrics], metric_classes.get)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what was recorded, which belongs to this model's memory: a copy records its own steps."""
        return {**self.__dict__, "_replay": None}

    # -- the doors -------------------------------------------------------------------------------------------------

    def fit(self, x: Any, y: Any, *, checkpoint: Any = None, resume: str | bool = "auto", resume_allow: Sequence[str] = (),
            **arguments: Any) -> History:
        """Trains; see `Model.fit`."""
        options = Checkpoint.of(checkpoint)
        check_resume(resume)
        with self.computing(training=True), inputs.lost_workers_explained(x, arguments.get("validation_data")):
            try:
                session = None if options is None else Session(options, resume, resume_allow)
                return self._fit_in(session, x, y, **arguments)
            finally:
                self.end_training()

    def end_training(self) -> None:
        """Gives back what only training needs."""
        if self._replay is not None:
            self._replay.end_training()

    def _fit_in(self, session: Session | None, x: Any, y: Any, **arguments: Any) -> History:
        """Trains, and closes the session that keeps checkpoints of it."""
        if session is None:
            return self._fit(x, y, None, **arguments)
        try:
            return self._fit(x, y, session, **arguments)
        except StopAtOnce:
            session.close(wait=False)
            raise
        finally:
            session.close()

    def _fit(self, x: Any, y: Any, session: Session | None, *, batch_size: int | str | None, epochs: int, verbose: int | str,
             callbacks: Any, validation_split: float, validation_data: Any, shuffle: bool, class_weight: Mapping[int, float] | None,
             sample_weight: Any, initial_epoch: int, steps_per_epoch: int | None, validation_steps: int | None,
             validation_batch_size: int | None, validation_freq: int, seed: int | None, augment: Any, sampler: Any) -> History:
        size = batch_size if session is None or batch_size != AUTO else session.batch_size or AUTO
        for name, value in (("epochs", epochs), ("batch_size", None if size == AUTO else size), ("steps_per_epoch", steps_per_epoch),
                            ("validation_freq", validation_freq)):
            check_count(f"fit({name})", value)
        self._notes = []
        x, validation_data = self._given("fit", x), self._given(given.VALIDATION, validation_data)
        given.check_classes(x, validation_data)
        drawing = make_drawing(seed, shuffle, sampler, augment, inputs.channels_of(x), session.order_seed if session else None)
        data, held_out = self._data("fit", x, y, sample_weight, size, steps_per_epoch, drawing, class_weight, validation_split)
        size = data.batch_size if size == AUTO else size
        self.batch_size = None if size is None else int(size)
        validation = held_out
        if validation_data is not None:
            vx, vy, vw = inputs.unpack_validation(validation_data)
            validation, _ = self._data(given.VALIDATION, vx, vy, vw, validation_batch_size or size, validation_steps)
        step = self._prepare_training(data, epochs)
        given.give_class_names(self.model, given.names_of(x))
        progress = Progress(epochs, data.steps, verbose, device=self.device)
        for note in self._notes:
            progress.note(note)
        self.history = History()
        skipped = SkippedFiles([x, validation_data], self.history, progress.note, [session.options.path.parent] if session else ())
        callback_list = CallbackList([self.history, skipped, callbacks], self.model,
                                     {"epochs": epochs, "steps": data.steps, "verbose": verbose})
        skipped.also_in_folders_of(callback_list)
        progress.more = callback_list.progress_texts
        self._pace = _pace(data, callback_list, session)
        if session is None:
            keeper = None
            if self._first_plan(step, data, None) and self.plan is not None:
                progress.note(self.plan.describe())
        else:
            settings = data_settings(x, y, sample_weight, validation_data) | {
                "batch_size": size or 32, "shuffle": shuffle, "seed": seed if drawing.seed is not None else None,
                "initial_epoch": initial_epoch, **drawing.settings(),
                "steps_per_epoch": steps_per_epoch, "class_weight": class_weight, "validation_split": validation_split,
                "validation_steps": validation_steps, "validation_batch_size": validation_batch_size, "validation_freq": validation_freq,
            }  # fmt: skip
            keeper = self._keeper(session, step, data, callback_list, settings, drawing.seed, epochs, progress)

        def chosen(plan: Plan) -> None:
            progress.note(plan.describe())
            if keeper is not None:
                keeper.plan = plan

        cursor = session.cursor if session is not None else None
        begun = cursor is not None and (cursor.within or cursor.epoch > initial_epoch)
        try:
            runner = self._runner(step, data, epochs - initial_epoch, begun, chosen)
            loop.train(self.model, runner, data, validation, loop.Schedule(initial_epoch, epochs, validation_freq), callback_list,
                       progress, self._extra_logs, keeper)
            if keeper is not None:
                keeper.finish()
        except NonFiniteError as error:
            raise self._where_it_began(error, step, data, session, keeper) from error
        self._finish(step, data, epochs)
        return self.history

    def _finish(self, step: Step, data: Resident | Streamed, epochs: int) -> None:
        """Puts averages in the weights' place, with the statistics that belong to them."""
        self.optimizer.finalize_variable_values()
        if self.optimizer.wants_statistics:
            update_statistics(self.model, step, data, epochs)
        self.plan = replace(self.plan, micro_batch=step.room.limit) if self.plan else None

    def _keeper(self, session: Session, step: Step, data: Resident | Streamed, callbacks: CallbackList, settings: dict[str, Any],
                order_seed: int | None, epochs: int, progress: Progress) -> CheckpointKeeper:
        """Returns what saves the state of this training, after comparing it with the one that is resumed."""
        settings |= {**model_settings(self.model), **optimizer_settings(self.optimizer), **self.spec, "precision": self.precision,
                     "device": str(self.device), "fusions": self.fusions, "execution": self.execution, "micro_batch": self.micro_batch,
                     "steps_per_execution": self.steps_per_execution, "callbacks": callbacks.keys(),
                     "length of schedule": getattr(self.optimizer.schedule, "resolved_steps", None)}
        generators = getattr(data, "generators", ())
        live = Live(self.model, self.optimizer, step.train_totals, callbacks, generators)
        known = session.plan
        final = self._first_plan(step, data, known)
        assert self.plan is not None
        keeper = session.keeper(live, settings, self.plan, order_seed, getattr(data, "repeatable", True))
        if final:
            progress.note(self.plan.describe())
        if (saved := session.saved_plan) is not None:
            for line in (session.describe(epochs), session.use_threads(saved)):
                if line:
                    progress.note(line)
        return keeper

    def _where_it_began(self, error: NonFiniteError, step: Step, data: Resident | Streamed, session: Session | None,
                        keeper: CheckpointKeeper | None) -> NonFiniteError:
        """Returns the error with the first layer that was not finite, as far as that can be found."""
        if session is None or keeper is None:
            found = nonfinite.look(step, next(data.epoch(), None) if isinstance(data, Resident) else None)
        else:
            keeper.close()
            saved = session.store.load(lambda text: None)
            assert saved is not None, "the loop writes one before its first step"
            found = nonfinite.replay(keeper, saved, step, data)
        return NonFiniteError(f"{error} {found}")

    def evaluate(self, x: Any, y: Any, *, batch_size: int | None, verbose: int | str, sample_weight: Any, steps: int | None,
                 callbacks: Any) -> dict[str, Any]:
        """Returns losses and metrics by name; see `Model.evaluate`."""
        check_count("evaluate(batch_size)", batch_size)
        self._notes = []
        x = self._given("evaluate", x)
        given.compare_class_names(self.model, given.names_of(x))
        data, _ = self._data("evaluate", x, y, sample_weight, batch_size, steps)
        progress = Progress(1, data.steps, verbose, label="evaluate", device=self.device)
        for note in self._notes:
            progress.note(note)
        callback_list = CallbackList(callbacks, self.model, {"epochs": 1, "steps": data.steps, "verbose": verbose})
        progress.epoch_begin(0)
        try:
            with self.computing(), inputs.lost_workers_explained(x):
                results = loop.evaluate(self.model, self._ready_step(), data, callback_list, progress)
            progress.epoch_end(scalars(results), data.samples)
        finally:
            progress.close()
        return results

    def on_batch(self, x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None, *, train: bool,
                 return_dict: bool) -> Any:
        """Trains on, or evaluates, one batch and returns its results."""
        what = "train_on_batch" if train else "test_on_batch"
        arrays = self._arrays(what, x, y, sample_weight, class_weight)
        xs, ys, weights = (tuple(t.to(self.device) for t in part) for part in arrays)
        batch = Batch(xs, ys, weights, len(xs[0]))
        step = self._ready_step(bind=train)
        self.model.train(train)
        totals = step.train_totals if train else step.test_totals
        totals.reset()
        with self.computing(training=train):
            (step.train if train else step.evaluate)(batch)
        results = totals.read()
        self.model.eval()
        values = list(results.values())
        return results if return_dict else values[0] if len(values) == 1 else values

    def result_names(self) -> list[str]:
        """Returns the names of losses and metrics, in order."""
        return self._step.test_totals.result_names() if self._step else ["loss"]

    def metrics(self) -> list[Any]:
        """Returns the metric objects, in the order of their results."""
        return [metric for head in self._heads for metric in head.all_metrics()]

    # -- making ready ----------------------------------------------------------------------------------------------

    def _prepare_model(self, xs: Sequence[Tensor]) -> None:
        """Makes the parameters, moves them to the device, and finds out about the outputs, once."""
        self.model.to(self.device)
        if self._step is not None:
            return
        dtypes = self.model.input_dtypes or [None] * len(xs)
        if len(dtypes) != len(xs):
            raise DataError(explain("x", f"{len(xs)} array(s)", f"{len(dtypes)}: {list(self.model.input_names)}"))
        sample = [enter(x[:1].to(self.device), dtype, self.model.data_format) for x, dtype in zip(xs, dtypes, strict=True)]
        self._example = sample
        Room("building the model").attempt(lambda: self.model.build_for(sample), 1)
        outputs = Room("building the model").attempt(lambda: self.model.run_once(sample), 1)
        flat = flat_outputs(outputs)
        names = self.model.output_names or (list(outputs) if isinstance(outputs, dict) else
                                            [f"output_{i}" if i else "output" for i in range(len(flat))])
        if not self._heads:
            self._heads = self._make_heads(names)
        self._output_shapes = {name: tuple(o.shape) for name, o in zip(names, flat, strict=True)}
        for head in self._heads:
            for metric in head.all_metrics():
                metric.to(self.device)
        precision = PRECISIONS.get(self.precision, torch.float32)
        self._step = make_step(self.model, self._heads, self.optimizer, precision, self.device, self.micro_batch)
        self._step.together = 1 if self.steps_per_execution == AUTO else int(self.steps_per_execution)

    def _make_heads(self, names: Sequence[str]) -> list[Head]:
        return make_heads(names, self.spec["loss"], self.spec["loss_weights"], self.spec["metrics"], self.spec["weighted_metrics"])

    def _prepare_training(self, data: Resident | Streamed, epochs: int) -> Step:
        step = self._ready_step(bind=True)
        if data.steps is not None:
            self.optimizer.resolve(data.steps * epochs)
        learned = adapt_layers(self.model, step, data)
        if learned:
            self._notes.append(f"Learned from the first pictures: {', '.join(learned)}.")
        return step

    def _ready_step(self, bind: bool = False) -> Step:
        assert self._step is not None, "data are prepared before the step"
        if bind:
            named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            if not named:
                raise ArgumentError(explain("fit", "a model without trainable parameters", "at least one", "Set layer.trainable = True."))
            if [id(p) for _, p in named] != [id(p) for p in self._bound]:
                forget_other_weights(self.optimizer, self.model, named)
                self.optimizer.bind(named)
                self._bound = [p for _, p in named]
                self.plan = None
                self._step.forget_plan()
        return self._step

    def _extra_logs(self) -> dict[str, float]:
        return {"learning_rate": float(self.optimizer.lr)}


def _pace(data: Resident | Streamed, callbacks: CallbackList, session: Session | None) -> Pace:
    """Returns what of a training looks in between its steps."""
    full = data.samples // data.batch_size if isinstance(data, Resident) else None
    hooks = callbacks.listens("on_train_batch_begin", "on_train_batch_end", "on_test_batch_begin", "on_test_batch_end")
    return Pace(full, data.steps, hooks, None if session is None else session.options.every_steps)
