"""`Layer`: the base of all layers and models.

Anatomy of a layer: the constructor keeps its arguments and validates them, `build(input_shape)` makes the parameters
on first use, `forward(x)` computes, `compute_output_shape` says what comes out. Shapes in `build`, in
`compute_output_shape` and in messages are channels-last with the batch axis; tensors in `forward` have their channel
axis at index 1 (see `convolt.layout`).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from convolt import constraints, initializers, regularizers
from convolt.configurable import Configurable, Registry, changed_arguments, snake_case
from convolt.errors import ArgumentTypeError, ShapeError, StateError, did_you_mean, explain
from convolt.layers.ends import End, recalled, remember
from convolt.layers.infer import infer_output_shape
from convolt.layers.mask_flow import fill_masks, hand_on
from convolt.layers.symbolic import Node, SymbolicTensor, map_structure, shapes_of
from convolt.layers.symbolic import leaves as leaves
from convolt.layout import channels_last_memory, outside_shape, tensor_from_array, to_inside, to_outside
from convolt.masks import mask_of

registry: Registry[type[Layer]] = Registry("layer")
"""Every layer that can be made from its name, and so from a file."""

_name_counts: Counter[str] = Counter()


def unique_name(stem: str) -> str:
    """Returns `stem`, `stem_1`, `stem_2`, … as Keras numbers its layers."""
    count = _name_counts[stem]
    _name_counts[stem] += 1
    return stem if count == 0 else f"{stem}_{count}"


class Layer(Configurable, nn.Module):
    """A part of a model, with Keras's life cycle on `torch.nn.Module`.

    Args:
        name: shown in summaries and errors; made from the class name if None.
        trainable: False freezes the parameters (and the statistics of normalization layers).
        activity_regularizer: penalty on the output, added to the training loss; name or object.
        input_shape: of one sample, channels last; for the first layer of a `Sequential`.

    A layer of your own defines `build` (optional) and `forward` (or Keras's `call`):

    >>> class Scale(Layer):
    ...     def build(self, input_shape):
    ...         self.factor = self.add_weight(name="factor", shape=(), initializer="ones")
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> Scale()(np.ones((2, 3), "float32")).shape
    (2, 3)
    """

    name: str
    built: bool
    own_counts: ClassVar[frozenset[str]] = frozenset()  # buffers that are saved and are no weights: Keras has none for them
    is_leaf: ClassVar[bool] = True  # whether a graph of the model shows this layer as one node
    supports_masking: bool = False  # whether the output keeps the input's mask; True where a class defines `compute_mask`
    takes_masks: ClassVar[bool] = True  # whether an argument `mask` of `forward` or `call` is filled from the input

    def __init__(self, *, name: str | None = None, trainable: bool = True, activity_regularizer: Any = None,
                 input_shape: Sequence[int | None] | None = None, **unknown: Any) -> None:
        super().__init__()
        for argument in unknown:
            raise ArgumentTypeError(explain(f"{type(self).__name__}(...)", f"the unknown argument {argument!r}",
                                            "an argument of this layer", did_you_mean(argument, self._argument_names())))
        self.stem = snake_case(type(self).__name__)
        self.auto_named = name is None  # a model then names it by its place, so that files do not depend on counters
        self.name = name or unique_name(self.stem)
        self.built = False
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self._trainable = trainable
        self._weight_axes: dict[str, tuple[int, ...]] = {}
        self._split_shapes: dict[str, torch.Size] = {}
        self._regularized: list[tuple[Tensor, regularizers.Regularizer, torch.Size, tuple[int, ...]]] = []
        self.constrained_weights: list[constraints.Constrained] = []
        self._activity_losses: list[Tensor] = []
        self.build_shapes: tuple[Any, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A class that computes masks supports them, as in Keras."""
        super().__init_subclass__(**kwargs)
        if "compute_mask" in cls.__dict__ and "supports_masking" not in cls.__dict__:
            cls.supports_masking = True

    def build(self, *input_shapes: Any) -> None:
        """Makes the parameters; called once, with the shape of each input (channels last, batch first)."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the output from tensors whose channel axis is at index 1."""
        call = getattr(self, "call", None)
        if call is None:
            raise StateError(explain(type(self).__name__, "no forward method", "`forward(self, x)` or `call(self, x)`"))
        if _takes_training(type(self)):
            kwargs.setdefault("training", self.training)
        return call(*args, **kwargs)

    def compute_output_shape(self, *input_shapes: Any) -> Any:
        """Returns the output's shape for input shapes (channels last, batch first; None: any size).

        The default runs `forward` on PyTorch's meta device, which computes shapes alone.
        """
        return infer_output_shape(self, input_shapes)

    def output_shape_of_call(self, input_shapes: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        """Returns the output's shape, or a list of several, where an argument of the call by name decides how many there are."""
        return self.compute_output_shape(*input_shapes)

    # -- calling ---------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer on tensors (channels at index 1), NumPy arrays (channels last), or symbolic tensors."""
        usual = len(args) == 1 and not kwargs and self.built and isinstance(args[0], Tensor)
        if usual and mask_of(args[0]) is None and type(self).compute_mask is Layer.compute_mask:  # there is nothing else to look for
            return self._penalized(super().__call__(args[0]))
        if "training" in kwargs and not _takes_training(type(self)):
            return self._call_in_mode(kwargs.pop("training"), args, kwargs)
        first = _first_leaf(args) if args else _first_leaf(tuple(kwargs.values()))
        if isinstance(first, SymbolicTensor):
            return self._record(args, kwargs)
        if isinstance(first, np.ndarray):
            return self._call_on_arrays(args, kwargs)
        if not self.built:
            self._build_for(args)
        given = args[0] if args else first
        mask = fill_masks(type(self), given, args, kwargs)
        output = super().__call__(*args, **kwargs)
        if (mask is not None or type(self).compute_mask is not Layer.compute_mask) and self.is_leaf:
            hand_on(self, given, output, mask)
        return self._penalized(output)

    def _penalized(self, output: Any) -> Any:
        if self.activity_regularizer is not None and self.training:
            self._activity_losses += [self.activity_regularizer(t) / t.shape[0] for t in leaves(output) if isinstance(t, Tensor)]
        return output

    def _call_in_mode(self, training: bool | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keras's `layer(x, training=…)`: the mode holds for this call alone."""
        if training is None or bool(training) == self.training:
            return self(*args, **kwargs)
        self.train(bool(training))
        try:
            return self(*args, **kwargs)
        finally:
            self.train(not training)

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shapes = shapes_of(args)
        if not self.built:
            self.ensure_built(*shapes)
        node = Node(self, args, kwargs)
        output = self.output_shape_of_call(shapes, kwargs)
        made: Any = SymbolicTensor(output, node=node)
        if isinstance(output, list):
            made = [SymbolicTensor(shape, node=node, index=i) for i, shape in enumerate(output)]
        remember(self, made)
        return made

    input, output = End(), End()

    def symbolic_ends(self) -> tuple[Any, Any] | None:
        """Returns the symbolic tensors that the layer was first called on, and what it gave, for `input` and `output`."""
        return recalled(self)

    def _call_on_arrays(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        device = next((p.device for p in self.parameters()), torch.device("cpu"))

        def enter(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            tensor = tensor_from_array(value).to(device)
            return to_inside(tensor.float() if tensor.dtype in (torch.float64, torch.uint8) else tensor)

        given = {name: torch.from_numpy(value.copy()).to(device) if name.endswith("mask") and isinstance(value, np.ndarray)
                 else map_structure(enter, value) for name, value in kwargs.items()}  # masks keep the user's order of axes
        output = self(*map_structure(enter, args), **given)
        return map_structure(lambda t: to_outside(t.detach()).cpu().numpy() if isinstance(t, Tensor) else t, output)

    # -- masks -----------------------------------------------------------------------------------------------------

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the mask of the output, which marks the steps that count; by default the input's (see `convolt.masks`).

        Args:
            inputs: what the layer was called on, with the channel axis at index 1.
            mask: of the first argument, `(batch, steps)`; a list where that is a list; None where there is none.
        """
        return mask

    # -- building --------------------------------------------------------------------------------------------------

    def _build_for(self, args: tuple[Any, ...]) -> None:
        if not any(isinstance(leaf, Tensor) for leaf in leaves(args)):
            self.built = True  # called while torch.fx traces, with proxies: nothing is known
            return
        shapes = map_structure(lambda v: (None, *outside_shape(v)[1:]) if isinstance(v, Tensor) else v, args)
        device = next(leaf.device for leaf in leaves(args) if isinstance(leaf, Tensor))
        with torch.device(device):
            self.ensure_built(*shapes)

    def ensure_built(self, *input_shapes: Any) -> None:
        """Builds the layer for these input shapes unless it is built already."""
        if self.built:
            return
        self.build(*input_shapes)
        self.build_shapes = input_shapes
        self.built = True
        if not self._trainable:
            self.trainable = False

    def add_weight(self, shape: Sequence[int] = (), initializer: Any = "glorot_uniform", dtype: Any = None,
                   trainable: bool = True, regularizer: Any = None, constraint: Any = None, name: str | None = None, *,
                   axes: Sequence[int] | None = None, torch_shape: Sequence[int] | None = None) -> Tensor:
        """Makes a parameter (`trainable`) or a buffer, and registers it if it has a name.

        Args:
            shape: in Keras's order of axes, which is what `get_weights` and the initializer's fans see.
            initializer: name, configuration or object.
            dtype: torch dtype; None for the default floating type.
            trainable: False makes a buffer: saved, not trained.
            regularizer: penalty added to the training loss; name, configuration or object.
            constraint: projection after each update; name, configuration or object.
            name: attribute under which it is kept; without one, assign the returned tensor to an attribute.
            axes: permutation from Keras's order of axes to PyTorch's, e.g. (3, 2, 0, 1) for a Conv2D kernel.
            torch_shape: shape in PyTorch, where axes that Keras keeps apart are merged after the permutation:
                (C·M, 1, height, width) for a depthwise kernel.

        Returns:
            The tensor in PyTorch's order of axes.
        """
        value = initializers.values_of(initializer, shape)
        if dtype is not None:
            value = value.to(dtype)
        permuted = value if axes is None else value.permute(*axes).contiguous()
        if axes is not None:
            value = channels_last_memory(permuted if torch_shape is None else permuted.reshape(tuple(torch_shape)))
        weight: Tensor = nn.Parameter(value, requires_grad=trainable and self._trainable) if trainable else value
        if name is not None:
            if axes is not None:
                self._weight_axes[name], self._split_shapes[name] = tuple(axes), permuted.shape
            if trainable:
                self.register_parameter(name, weight)  # type: ignore[arg-type]
            else:
                self.register_buffer(name, weight)
        order = tuple(range(permuted.ndim) if axes is None else np.argsort(axes).tolist())
        if regularizer is not None:
            penalty = cast(regularizers.Regularizer, regularizers.get(regularizer))
            self._regularized.append((weight, penalty, permuted.shape, order))
        if constraint is not None:
            projection = cast(constraints.Constraint, constraints.get(constraint))
            self.constrained_weights.append(constraints.Constrained(weight, projection, permuted.shape, order))
        return weight

    # -- weights ---------------------------------------------------------------------------------------------------

    def _own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor) of this layer alone: parameters first, then buffers, as Keras orders them."""
        yield from self._parameters.items()  # type: ignore[misc]
        left_out = self._non_persistent_buffers_set | self.own_counts
        yield from ((name, b) for name, b in self._buffers.items() if b is not None and name not in left_out)

    def keras_weights(self, prefix: str = "") -> list[tuple[str, Tensor]]:
        """Returns (path, view in Keras's order of axes) for each weight, in the order of Keras's `get_weights`."""
        found: list[tuple[str, Tensor]] = []
        for name, tensor in self._own_weights():
            if tensor is not None:
                axes, view = self._weight_axes.get(name), tensor.detach()
                if axes is not None:
                    view = view.view(self._split_shapes[name]).permute(*np.argsort(axes).tolist())
                found.append((prefix + name, view))
        for name, child in _children(self):
            if isinstance(child, Layer):
                found += child.keras_weights(f"{prefix}{name}.")
            else:
                found += [(f"{prefix}{name}.{key}", value) for key, value in child.state_dict().items()]
        return found

    def get_weights(self) -> list[np.ndarray]:
        """Returns the weights as NumPy arrays, in Keras's order and with Keras's order of axes."""
        return [view.cpu().numpy().copy() for _, view in self.keras_weights()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets the weights from arrays in the order of `get_weights`.

        Raises:
            StateError: the layer has not been built, so that it has no weights yet.
            ShapeError: the number of arrays or a shape does not fit; the weight is named.
        """
        own = self.keras_weights()
        if not own and weights and not self.built:
            raise StateError(explain(f"{self.name}.set_weights", "a layer that is not built", "a built layer",
                                     "Call build(input_shape), or call it once on data."))
        if len(own) != len(weights):
            raise ShapeError(explain(f"{self.name}.set_weights", f"{len(weights)} arrays", f"{len(own)}: {[name for name, _ in own]}"))
        for (name, view), value in zip(own, weights, strict=True):
            array = torch.as_tensor(np.asarray(value))
            if tuple(array.shape) != tuple(view.shape):
                raise ShapeError(explain(f"{self.name}.set_weights: {name}", f"shape {tuple(array.shape)}", f"{tuple(view.shape)}"))
        with torch.no_grad():
            for (_, view), value in zip(own, weights, strict=True):
                view.copy_(torch.as_tensor(np.asarray(value)))
        for module in self.modules():
            if isinstance(module, Layer):
                module.weights_were_set()

    def weights_were_set(self) -> None:
        """Called when all weights were given new values from elsewhere, in Keras's order."""

    @property
    def weights(self) -> list[Tensor]:
        """All parameters and buffers of the layer and its parts."""
        return [*self.parameters(), *self._state()]

    def _state(self) -> list[Tensor]:
        return [b for m in self.modules() for name, b in m.named_buffers(recurse=False) if name not in getattr(m, "own_counts", ())]

    @property
    def trainable_weights(self) -> list[Tensor]:
        """The parameters that training changes."""
        return [p for p in self.parameters() if p.requires_grad]

    trainable_variables = trainable_weights

    @property
    def non_trainable_weights(self) -> list[Tensor]:
        """Frozen parameters and buffers."""
        return [*(p for p in self.parameters() if not p.requires_grad), *self._state()]

    def count_params(self) -> int:
        """Returns the number of values in all weights, as Keras counts them."""
        return sum(view.numel() for _, view in self.keras_weights())

    @property
    def trainable(self) -> bool:
        """Whether training changes this layer; setting it reaches every layer inside."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(self._trainable)
        for child in self.children():
            if isinstance(child, Layer):
                child.trainable = value
            else:
                child.requires_grad_(self._trainable)

    # -- penalties -------------------------------------------------------------------------------------------------

    def penalties(self) -> list[Tensor]:
        """Returns the regularization losses of this layer and its parts, and forgets those of activities."""
        found: list[Tensor] = []
        for module in self.modules():
            if isinstance(module, Layer):
                if module._regularized:
                    found += [penalty(weight.view(split).permute(order))
                              for weight, penalty, split, order in module._regularized if weight.requires_grad]
                if module._activity_losses:
                    found += module._activity_losses
                    module._activity_losses = []
        return found

    def add_loss(self, loss: Tensor) -> None:
        """Adds a scalar to the training loss of this step; call it from `forward`."""
        if self.training:
            self._activity_losses.append(loss)

    # -- configuration ---------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as JSON values."""
        config = super().get_config()
        if config.get("input_shape") is None:
            config.pop("input_shape", None)
        return {key: value for key, value in config.items() if key != "activity_regularizer" or value is not None}

    def extra_repr(self) -> str:
        """Returns the arguments that differ from their defaults, for `repr`."""
        return ", ".join(f"{key}={value}" for key, value in changed_arguments(self).items()
                         if key not in ("name", "data_format"))  # there is one data format


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields (name, part) of a module's parts, with those in a list in its place."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{inner}", part) for inner, part in _children(child))
        else:
            yield name, child


def _first_leaf(values: Any) -> Any:
    return next(leaves(values), None)


_training_argument: dict[type, bool] = {}


def _takes_training(cls: type) -> bool:
    """Whether the class's `forward` or `call` has an argument named `training`, as Keras's layers do."""
    if cls not in _training_argument:
        methods = [m for m in (getattr(cls, "call", None), getattr(cls, "forward", None)) if m is not None]
        _training_argument[cls] = any("training" in inspect.signature(m).parameters for m in methods)
    return _training_argument[cls]
