"""`Model`: a layer that can be compiled, trained, evaluated and saved.

Everything that trains is in `convolt.training`, which takes any module; the methods here are its doors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, fx, nn

from convolt.errors import ArgumentError, StateError, did_you_mean, explain, names_arguments
from convolt.layers.base import Layer, leaves
from convolt.layers.symbolic import SymbolicTensor
from convolt.layers.tracing import trace
from convolt.layout import Shape, outside_shape
from convolt.models.graph import example_inputs
from convolt.models.looking import Looking
from convolt.models.own_steps import OwnSteps
from convolt.models.transfer import Transfer
from convolt.modes import evaluating

if TYPE_CHECKING:
    from convolt.models.wrapped import Wrapped
    from convolt.training.callbacks import History
    from convolt.training.trainer import Trainer


class Model(Looking, Transfer, OwnSteps, Layer):
    """A network. Three ways to write one: `Sequential([...])`, `Model(inputs, outputs)`, and a subclass of `Model`.

    A subclass makes its layers in `__init__` and calls them in `forward(self, x)` (or in Keras's `call`), on tensors
    whose channel axis is at index 1:

    >>> from convolt import layers
    >>> class Net(Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.flatten, self.dense = layers.Flatten(), layers.Dense(10)
    ...     def forward(self, x):
    ...         return self.dense(self.flatten(x))
    """

    is_leaf = False
    stop_training: bool = False
    class_names: list[str] | None = None
    flexible_input: bool = True  # whether pictures of another size than the first may fit
    data_format: str = "channels_last"  # of what fit, evaluate and predict are given

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`Model(inputs, outputs)` makes a `Functional` model."""
        if cls is Model and (args or "inputs" in kwargs):
            from convolt.models.functional import Functional

            return super().__new__(Functional)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if any(isinstance(leaf, SymbolicTensor) for leaf in leaves([args, kwargs])):
            raise ArgumentError(explain(f"{type(self).__name__}(inputs, outputs)", "symbolic tensors in a subclass's super().__init__",
                                        "them in Model(inputs, outputs)", "Make the functional model in a function that returns it."))
        super().__init__(*args, **kwargs)
        self._trainer: Trainer | None = None

    @staticmethod
    def wrap(module: nn.Module, input_shape: Sequence[int] | None = None, data_format: str = "channels_last") -> Wrapped:
        """Returns a model that gives `compile`, `fit`, `evaluate` and `predict` to a PyTorch module, which is not copied.

        Args:
            module: takes and returns tensors with the channel axis at index 1, as PyTorch's modules do.
            input_shape: of one sample, channels last; lets `summary()` work before the first data.
            data_format: of the arrays given to `fit`, `evaluate` and `predict`; "channels_first" for data made for PyTorch.
        """
        from convolt.models.wrapped import Wrapped

        return Wrapped(module, None if input_shape is None else tuple(input_shape), data_format)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model; in a step of its own, what the plan put in its place."""
        step = self.own_step
        mode = kwargs.get("training")
        if step is None or not kwargs.keys() <= {"training"} or mode not in (None, self.training):
            return super().__call__(*args, **kwargs)
        self.own_step = None
        try:
            return step.call(*args)
        finally:
            self.own_step = step

    # -- structure -------------------------------------------------------------------------------------------------

    def _adopt(self, layer: Layer) -> str:
        """Makes `layer` a part of this model and returns its name in it, which is a key of the state dict."""
        taken = set(self._modules)
        if layer.auto_named:
            layer.name = next(n for i in range(len(taken) + 1) if (n := f"{layer.stem}_{i}" if i else layer.stem) not in taken)
            layer.auto_named = False
        if set(layer.name) & set("\"'\\`") or not layer.name.isprintable():  # torch.fx writes names into code, unescaped
            raise ArgumentError(explain(f"layer name in {self.name!r}", repr(layer.name), "text without quotes, backslashes and controls"))
        key = layer.name.replace(".", "_").replace("/", "_")
        if key in taken:
            raise ArgumentError(explain(f"layer name in {self.name!r}", f"{layer.name!r} twice", "a name of its own for each layer"))
        if hasattr(type(self), key) or key in self.__dict__:  # a layer may be called "outputs"; the model's attribute keeps that name
            key = next(k for i in range(len(taken) + 1) if (k := f"{key}_layer{i or ''}") not in taken)
        self.add_module(key, layer)
        return key

    @property
    def layers(self) -> list[Any]:
        """The layers (and PyTorch modules) that the model is made of, without those inside them."""
        return list(self.children())

    def get_layer(self, name: str | None = None, index: int | None = None) -> Any:
        """Returns a layer by its name or its position."""
        if index is not None:
            if not -len(self.layers) <= index < len(self.layers):
                raise ArgumentError(explain("get_layer(index)", index, f"less than {len(self.layers)}, the number of layers"))
            return self.layers[index]
        by_name = {getattr(layer, "name", key): layer for key, layer in self.named_children()}
        if name not in by_name:
            raise ArgumentError(explain("get_layer(name)", repr(name), "the name of a layer", did_you_mean(str(name), by_name)))
        return by_name[name]

    @property
    def graph(self) -> fx.Graph:
        """The model as a `torch.fx` graph with layers as leaves.

        Raises:
            StateError: the code of a subclass cannot be traced, with torch.fx's reason.
        """
        try:
            return trace(self)
        except Exception as error:
            raise StateError(explain(f"graph of {self.name!r}", f"code that torch.fx cannot follow ({error})",
                                     "a forward without branches on values")) from error

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs."""
        return [f"input_{i}" if i else "input" for i in range(max(1, len(self.input_shapes)))]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs; empty where they are not known before the first batch."""
        return []

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the inputs, batch first, channels last; empty while they are not known."""
        shapes = self.build_shapes
        return list(shapes[0]) if len(shapes) == 1 and isinstance(shapes[0], list) else list(shapes)

    @property
    def input_dtypes(self) -> list[str]:
        """Types of values that the inputs take; empty where they are not known (integers then stay as they are)."""
        return []

    # -- building --------------------------------------------------------------------------------------------------

    def build(self, *input_shapes: Any) -> None:
        """Makes the parameters for inputs of these shapes (batch first, channels last) by one run on zeros."""
        shapes = input_shapes[0] if len(input_shapes) == 1 and isinstance(input_shapes[0], list) else input_shapes
        self.run_once(example_inputs(shapes, torch.empty(0).device, ["float32"] * len(shapes)))
        self.build_shapes = tuple(shapes)

    def run_once(self, inputs: Sequence[Tensor]) -> Any:
        """Runs `forward` on inside tensors in inference mode; layers that are not built make their parameters."""
        self.built = True
        with evaluating(self), torch.no_grad():
            return self(*inputs)

    def build_for(self, inputs: Sequence[Tensor]) -> None:
        """Makes all parameters, by a run on the first sample, unless they exist; nothing is trained."""
        shapes = tuple((None, *outside_shape(x)[1:]) for x in inputs) if self.data_format == "channels_last" else ()
        if self.built and all(m.built for m in self.modules() if isinstance(m, Layer)):
            self.build_shapes = self.build_shapes or shapes
            return
        with torch.device(inputs[0].device):
            if type(self).build is not Model.build and not self.built:
                self.ensure_built(*shapes)
            self.run_once([x[:1] for x in inputs])
        self.build_shapes = self.build_shapes or shapes

    def summary(self, line_length: int | None = None, print_fn: Callable[[str], Any] | None = None) -> None:
        """Prints the layers with output shapes (channels last), parameters and FLOPs of one forward pass of one sample."""
        from convolt.models.summary import summarize

        (print_fn or print)(summarize(self).as_text(line_length))

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    # -- training --------------------------------------------------------------------------------------------------

    @names_arguments
    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, loss_weights: Any = None,
                weighted_metrics: Any = None, *, precision: str = "auto", device: Any = "auto", fusions: Any = "auto",
                execution: str = "auto", micro_batch: int | None = None, run_eagerly: bool = False, steps_per_execution: int | str = 1,
                jit_compile: bool | str = "auto") -> None:
        """Fixes how the model is trained.

        Args:
            optimizer: name or object of `convolt.optimizers`.
            loss: name, object or function; for several outputs a list or a mapping by output name.
            metrics: list of names or objects; for several outputs a list of lists or a mapping.
            loss_weights: factor of each output's loss.
            weighted_metrics: metrics that take sample weights into account.
            precision: "float32", "bfloat16" (computation in bf16, weights in float32) or "auto": training in bfloat16 where that is
                measured to be faster and right, evaluation in float32.
            device: "auto", "cpu", "cuda", "cuda:1", "mps", "xpu".
            fusions: which rewrites of the graph are used: "auto" measures, "none", "all", or names (see `convolt.compiler.fuse`).
            execution: "auto" records the whole step and replays it where that works, on CUDA as a graph, and compiles the model with
                `torch.compile` where a long run repays it and it is measured to be right and faster; "replay": the former alone;
                "eager": neither; "compile": compiled in any case.
            micro_batch: most samples that are computed at once. The gradients of a batch's parts are added up, so that it gives
                the update of the whole batch with less memory; normalization by batch statistics sees the parts. None: whole
                batches, until memory runs out, when half as many are tried.
            run_eagerly: Keras's way to say execution="eager".
            steps_per_execution: steps, of training and of evaluation, between two calls of the callbacks' batch hooks, which
                get the last of their numbers; on CUDA these steps are one graph. The result does not depend on it. "auto": as many in
                one graph as nobody notices, and 1 where steps are no graphs or callbacks are called at batches.
            jit_compile: accepted for Keras's sake; the way in which the step runs is Convolt's own choice.

        Raises:
            ArgumentError: an unknown name; the message has the nearest.
            DeviceError: the device cannot be used; the message says what was found.
        """
        from convolt.training.trainer import Trainer

        self._trainer = Trainer(self, optimizer, loss, metrics, loss_weights, weighted_metrics, precision=precision, device=device,
                                fusions=fusions, execution="eager" if run_eagerly else execution, micro_batch=micro_batch,
                                steps_per_execution=steps_per_execution)

    @property
    def trainer(self) -> Trainer:
        """What `compile` made."""
        if self._trainer is None:
            raise StateError(explain(f"model {self.name!r}", "no compile(...) yet", "compile before training",
                                     'For example model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"]).'))
        return self._trainer

    @property
    def optimizer(self) -> Any:
        """The optimizer that `compile` was given; None before."""
        return self._trainer.optimizer if self._trainer else None

    @property
    def plan(self) -> Any:
        """How the step runs: chosen when `fit` starts; None before."""
        return self._trainer.plan if self._trainer else None

    @property
    def history(self) -> History | None:
        """History of the last `fit`."""
        return self._trainer.history if self._trainer else None

    @property
    def metrics(self) -> list[Any]:
        """The metric objects, in the order of their results."""
        return self._trainer.metrics() if self._trainer else []

    @property
    def metrics_names(self) -> list[str]:
        """Names of what `evaluate` returns, in order."""
        return self.trainer.result_names()

    @names_arguments
    def fit(self, x: Any = None, y: Any = None, batch_size: int | str | None = None, epochs: int = 1, verbose: int | str = "auto",
            callbacks: Any = None, validation_split: float = 0.0, validation_data: Any = None, shuffle: bool = True,
            class_weight: Mapping[int, float] | None = None, sample_weight: Any = None, initial_epoch: int = 0,
            steps_per_epoch: int | None = None, validation_steps: int | None = None, validation_batch_size: int | None = None,
            validation_freq: int = 1, seed: int | None = None, checkpoint: Any = None, resume: str | bool = "auto",
            resume_allow: Sequence[str] = (), augment: Any = None, sampler: Any = None) -> History:
        """Trains the model and returns the history of losses and metrics.

        Args:
            x: NumPy arrays (channels last), tensors, a PyTorch `Dataset` or `DataLoader`, a generator of
                `(x, y)` or `(x, y, sample_weight)` batches; for several inputs a list or a mapping by name.
            y: labels; None where `x` brings them.
            batch_size: samples per step, 32 by default; "auto" measures which size is fastest.
            epochs: number of the last epoch.
            verbose: "auto", 0 silent, 1 progress line, 2 one line per epoch.
            callbacks: list of `convolt.callbacks.Callback`.
            validation_split: last part of the arrays, kept out of training and evaluated after each epoch.
            validation_data: `(x, y)`, `(x, y, sample_weight)` or anything that `x` may be.
            shuffle: a new order of samples each epoch.
            class_weight: weight of the loss by class.
            sample_weight: weight of the loss by sample.
            initial_epoch: number of the first epoch.
            steps_per_epoch: steps after which an epoch ends; needed for endless generators.
            validation_steps, validation_batch_size, validation_freq: the same for validation.
            seed: of the order of samples; drawn from PyTorch's generator if None, so that `set_random_seed` decides all.
            checkpoint: folder in which the state of the training is kept, or a `convolt.Checkpoint` that also says how often.
                Stopped or killed at any instant, the same call goes on where the last checkpoint was, bit for bit.
            resume: "auto" goes on from the folder's last checkpoint if there is one, True insists on one, False starts anew.
            resume_allow: names of settings that may differ from the saved ones, such as "learning_rate".
            augment: transforms of `convolt.data.augment` (a list, one, or words such as "flip,rotate=10") of the training's pictures.
            sampler: "balanced" (all classes alike), a weight for each sample, or a `convolt.training.sampling.Sampler`.

        Raises:
            StateError: before `compile`.
            DataError: arrays or labels that cannot be used; the message says which and what to do.
            CheckpointError: the folder cannot be used, or its training had other settings; the message lists them.
            NonFiniteError: with checkpoints, the loss became NaN or infinite; the message names the first layer where it did.
        """
        return self.trainer.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=verbose, callbacks=callbacks,
                                validation_split=validation_split, validation_data=validation_data, shuffle=shuffle,
                                class_weight=class_weight, sample_weight=sample_weight, initial_epoch=initial_epoch,
                                steps_per_epoch=steps_per_epoch, validation_steps=validation_steps,
                                validation_batch_size=validation_batch_size, validation_freq=validation_freq, seed=seed,
                                checkpoint=checkpoint, resume=resume, resume_allow=resume_allow, augment=augment, sampler=sampler)

    @names_arguments
    def evaluate(self, x: Any = None, y: Any = None, batch_size: int | None = None, verbose: int | str = "auto",
                 sample_weight: Any = None, steps: int | None = None, callbacks: Any = None, return_dict: bool = False) -> Any:
        """Returns the loss and the metrics over all of `x`, which is anything that `fit` takes: a list like `metrics_names`, or a dict."""
        results = self.trainer.evaluate(x, y, batch_size=batch_size, verbose=verbose, sample_weight=sample_weight,
                                        steps=steps, callbacks=callbacks)
        if return_dict:
            return results
        values = list(results.values())
        return values[0] if len(values) == 1 else values

    @names_arguments
    def predict(self, x: Any, batch_size: int | None = None, verbose: int | str = "auto", steps: int | None = None,
                callbacks: Any = None) -> Any:
        """Returns outputs as NumPy arrays (channels last), in the order of `x`: what `fit` takes, or a picture's or folder's path."""
        from convolt.training.predict import predict

        return predict(self, x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Mapping[int, float] | None = None,
                       return_dict: bool = False) -> Any:
        """Takes one training step on one batch and returns its loss and metrics."""
        return self.trainer.on_batch(x, y, sample_weight, class_weight, train=True, return_dict=return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Returns the loss and the metrics of one batch, training nothing."""
        return self.trainer.on_batch(x, y, sample_weight, None, train=False, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """Returns the outputs for one batch as NumPy arrays."""
        return self.predict(x, batch_size=len(x), verbose=0)

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, filepath: str | Path, overwrite: bool = True) -> None:
        """Writes architecture, weights and how it was compiled to one file, without pickle; the suffix says which.

        `.safetensors` holds any model of Convolt; `.keras` and `.h5` are files that Keras 3 loads, of `Sequential` and functional
        models of layers that Keras has.

        Raises:
            ModelFileError: the model cannot be written so (a wrapped PyTorch module, a lambda), with what to do.
        """
        from convolt.formats import save_model

        save_model(self, filepath, overwrite=overwrite)

    def export(self, filepath: str | Path, format: str | None = None, *, input_dtype: str = "float32", check: Any = None) -> Any:
        """Writes the model for other programs and compares the file's outputs with its own first.

        Args:
            filepath: the target; its suffix is the format if `format` is None.
            format: "onnx", "pt2" (a `torch.export` program), "h5" or "keras".
            input_dtype: "float32", or "uint8" for a file that takes the bytes of pictures (ONNX and pt2).
            check: arrays to compare on, channels last, one for each input; random ones if None.

        Returns:
            A `convolt.formats.export.Comparison`: what ran the file, and how far its outputs are off.

        Raises:
            ModelFileError: the model cannot be written so, or the file computes something else; then there is no file.
        """
        from convolt.formats.export import export

        return export(self, filepath, format, input_dtype=input_dtype, check=check)

    def save_weights(self, filepath: str | Path, overwrite: bool = True) -> None:
        """Writes the weights alone: `.safetensors` for any tool (PyTorch's names and axes), `.weights.h5` or `.h5` for Keras."""
        from convolt.formats import save_weights

        save_weights(self, filepath, overwrite=overwrite)

    def load_weights(self, filepath: str | Path, by_name: bool = False, skip_mismatch: bool = False) -> Self:
        """Reads weights into this model: of Convolt, of a PyTorch state dict in `.safetensors`, or of Keras (`.h5`, `.keras`).

        Args:
            filepath: the file; what it is, its content says.
            by_name: for legacy `.h5` files: take the layers whose names are equal, rather than all in their order.
            skip_mismatch: for Keras's files: leave out, with a warning, what has another shape.

        Raises:
            ModelFileError: names or shapes do not fit; the message lists what is missing, unknown or misshaped.
        """
        from convolt.formats import load_weights

        load_weights(self, filepath, by_name=by_name, skip_mismatch=skip_mismatch)
        return self
