"""Programs written for Keras run with `import convolt as keras` in place of `import keras`, and compute the same numbers.

Each program sets all weights to given values and keeps the order of samples, so that both frameworks must come to the same
`result`: a dict whose entries are compared, names and shapes exactly, floats within 1e-4.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_TORCH_DEVICE"] = "cpu"

import textwrap
from pathlib import Path

import numpy as np
import pytest

TOLERANCE = 1e-4

PRELUDE = """
import keras
import numpy as np
from keras import layers

rng = np.random.default_rng(0)
images = rng.uniform(size=(40, 8, 8, 1)).astype("float32")
labels = (images.mean((1, 2, 3)) * 1e4).astype("int64") % 3

def logged(history):
    "Returns what was logged, without the learning rate, which Keras logs only if a callback changed it."
    return {name: values for name, values in history.history.items() if name != "learning_rate"}

def fixed_weights(model):
    "Gives the model weights that do not depend on the framework."
    values = np.random.default_rng(1)
    model.set_weights([values.uniform(0.0, 0.2, w.shape).astype("float32") for w in model.get_weights()])
    return model
"""

PROGRAMS = {
    "sequential_cnn": """
        model = keras.Sequential([
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dropout(0.0),
            layers.Dense(3, activation="softmax"),
        ])
        fixed_weights(model)
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(images, labels, batch_size=16, epochs=3, shuffle=False, validation_split=0.2, verbose=0)
        loss, accuracy = model.evaluate(images, labels, verbose=0)
        result = {"history": logged(history), "epochs": history.epoch, "loss": loss, "accuracy": accuracy,
                  "predictions": model.predict(images, verbose=0), "weights": model.get_weights(),
                  "parameters": model.count_params(), "output": model.output_shape}
    """,
    "functional_with_two_inputs": """
        picture = keras.Input((8, 8, 1), name="picture")
        extra = keras.Input((2,), name="extra")
        x = layers.Conv2D(4, 3, activation="relu")(picture)
        shortcut = x
        x = layers.Conv2D(4, 3, padding="same")(x)
        x = layers.Activation("relu")(layers.Add()([x, shortcut]))
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Concatenate()([x, layers.Dense(3, activation="tanh")(2 * (1 - extra) / 3 - extra)])
        classes = layers.Dense(3, activation="softmax", name="classes")(x)
        size = layers.Dense(1, name="size")(x)
        model = fixed_weights(keras.Model([picture, extra], [classes, size]))
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss=["sparse_categorical_crossentropy", "mse"],
                      loss_weights=[1.0, 0.5], metrics=[["accuracy"], ["mae"]])
        numbers = rng.normal(size=(40, 2)).astype("float32")
        targets = images.mean((1, 2))
        history = model.fit([images, numbers], [labels, targets], batch_size=8, epochs=2, shuffle=False, verbose=0)
        predicted = model.predict({"picture": images, "extra": numbers}, verbose=0)
        result = {"history": logged(history), "classes": predicted[0], "size": predicted[1], "weights": model.get_weights()}
    """,
    "subclass_with_call": """
        class Net(keras.Model):
            def __init__(self, units, **kwargs):
                super().__init__(**kwargs)
                self.conv = layers.Conv2D(units, 3, activation="relu")
                self.norm = layers.BatchNormalization()
                self.pool = layers.GlobalMaxPooling2D()
                self.dropout = layers.Dropout(0.5)
                self.classes = layers.Dense(3)

            def call(self, x, training=False):
                x = self.norm(self.conv(x), training=training)
                x = self.pool(x)
                if training:
                    x = x * 1.5
                return self.classes(self.dropout(x, training=False))

        model = Net(4)
        model.compile(optimizer=keras.optimizers.RMSprop(1e-2),
                      loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=[keras.metrics.SparseCategoricalAccuracy(name="right")])
        model.predict(images[:1], verbose=0)
        fixed_weights(model)
        history = model.fit(images, labels, batch_size=20, epochs=3, shuffle=False, validation_data=(images, labels), verbose=0)
        result = {"history": logged(history), "predictions": model.predict(images, verbose=0), "weights": model.get_weights(),
                  "trainable": len(model.trainable_weights), "frozen": len(model.non_trainable_weights)}
    """,
    "callbacks": """
        seen = []

        class Notes(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                seen.append("begin")
            def on_epoch_end(self, epoch, logs=None):
                seen.append((epoch, sorted(name for name in logs if name != "learning_rate")))
            def on_train_batch_end(self, batch, logs=None):
                seen.append((batch, float(logs["loss"])))

        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
        fixed_weights(model)
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        callbacks = [
            Notes(),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5 if epoch else rate),
            keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.1, patience=1, min_delta=10.0),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=2, min_delta=10.0, restore_best_weights=True),
            keras.callbacks.CSVLogger("log.csv"),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.LambdaCallback(on_train_end=lambda logs: seen.append("end")),
        ]
        history = model.fit(images, labels, batch_size=20, epochs=9, shuffle=False, validation_split=0.5, callbacks=callbacks, verbose=0)
        with open("log.csv") as file:
            columns = file.readline().strip().split(",")
        result = {"seen": seen, "history": history.history, "epochs": history.epoch, "weights": model.get_weights(), "columns": columns[0]}
    """,
    "weights_of_classes_and_samples": """
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
        fixed_weights(model)
        model.compile("sgd", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
        model.fit(images, labels, batch_size=10, epochs=2, shuffle=False, class_weight={0: 1.0, 1: 5.0, 2: 0.5}, verbose=0)
        by_class = model.get_weights()
        weights = np.linspace(0.0, 2.0, 40)
        model.fit(images, labels, batch_size=10, epochs=2, shuffle=False, sample_weight=weights, verbose=0)
        result = {"by_class": by_class, "by_sample": model.get_weights(),
                  "evaluated": model.evaluate(images, labels, sample_weight=weights, verbose=0)}
    """,
    "own_layer_with_weights": """
        class Affine(layers.Layer):
            def __init__(self, units, **kwargs):
                super().__init__(**kwargs)
                self.units = units

            def build(self, input_shape):
                self.kernel = self.add_weight(shape=(input_shape[-1], self.units), initializer="zeros", trainable=True, name="kernel",
                                              regularizer=keras.regularizers.L2(0.01))
                self.shift = self.add_weight(shape=(self.units,), initializer=keras.initializers.Constant(0.5), name="shift")

            def call(self, inputs):
                return inputs @ self.kernel + self.shift

            def get_config(self):
                return {**super().get_config(), "units": self.units}

        layer = Affine(3, name="affine")
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layer, layers.Softmax()])
        start = layer.get_weights()
        model.compile("sgd", "sparse_categorical_crossentropy")
        history = model.fit(images, labels, batch_size=10, epochs=2, shuffle=False, verbose=0)
        again = Affine.from_config(layer.get_config())
        result = {"start": start, "end": layer.get_weights(), "loss": history.history["loss"], "units": again.units, "name": again.name}
    """,
    "one_hot_labels": """
        one_hot = keras.utils.to_categorical(labels, num_classes=3)
        model = keras.Sequential()
        model.add(layers.Rescaling(2.0, offset=-1.0))
        model.add(layers.Conv2D(4, (3, 3), activation="relu", kernel_initializer="he_normal", kernel_regularizer="l2"))
        model.add(layers.AveragePooling2D((2, 2)))
        model.add(layers.Flatten())
        model.add(layers.Dense(3, activation="softmax"))
        model.build((None, 8, 8, 1))
        fixed_weights(model)
        schedule = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=4, decay_rate=0.5)
        model.compile(optimizer=keras.optimizers.AdamW(learning_rate=schedule, weight_decay=0.0, clipnorm=1.0),
                      loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
                      metrics=["accuracy", keras.metrics.TopKCategoricalAccuracy(k=2, name="top2"), keras.metrics.AUC(name="auc"),
                               keras.metrics.Precision(name="precision"), keras.metrics.F1Score(average="macro", name="f1")])
        history = model.fit(images, one_hot, batch_size=10, epochs=3, shuffle=False, verbose=0)
        scores = model.evaluate(images, one_hot, verbose=0, return_dict=True)
        result = {"one_hot": one_hot, "history": logged(history), "scores": scores, "weights": model.get_weights()}
    """,
    "frozen_layers_and_a_generator": """
        keras.utils.set_random_seed(0)
        body = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()], name="body")
        body.trainable = False
        picture = keras.Input((8, 8, 1))
        x = layers.ZeroPadding2D(1)(body(picture))
        x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
        model = fixed_weights(keras.Model(picture, layers.Dense(1, activation="sigmoid", name="odd")(layers.GlobalAveragePooling2D()(x))))
        model.compile(keras.optimizers.Nadam(1e-2), "binary_crossentropy", metrics=["accuracy", "mae"])

        def batches():
            while True:
                for start in range(0, 40, 10):
                    yield images[start:start + 10], labels[start:start + 10, None] % 2

        history = model.fit(batches(), steps_per_epoch=4, epochs=2, shuffle=False, verbose=0)
        result = {"history": logged(history), "body": body.get_weights(), "head": model.get_layer("odd").get_weights(),
                  "trainable": len(model.trainable_weights)}
    """,
    "saving": """
        class Doubled(layers.Layer):
            def call(self, x):
                return 2 * x

        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), Doubled(), layers.Flatten(), layers.Dense(3)])
        fixed_weights(model)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        model.fit(images, labels, shuffle=False, verbose=0)
        model.save("net.keras")
        again = keras.models.load_model("net.keras", custom_objects={"Doubled": Doubled})
        same = np.array_equal(model.predict(images, verbose=0), again.predict(images, verbose=0))
        model.save_weights("net.weights.h5")
        other = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3), Doubled(), layers.Flatten(), layers.Dense(3)])
        other.load_weights("net.weights.h5")
        result = {"same": bool(same), "evaluated": again.evaluate(images, labels, verbose=0), "weights": other.get_weights()}
    """,
}


def run(program: str, framework: str) -> dict[str, object]:
    """Runs a program in the present folder and returns its `result`."""
    source = PRELUDE + textwrap.dedent(program)
    if framework == "convolt":  # the one line that changes; and files have Convolt's suffix
        source = source.replace("import keras\n", "import convolt as keras\n").replace("from keras import", "from convolt import")
        source = source.replace(".keras\"", ".safetensors\"").replace(".weights.h5", ".weights.safetensors")
    names: dict[str, object] = {"__name__": "program"}
    exec(compile(source, "program", "exec"), names)
    found = names["result"]
    assert isinstance(found, dict)
    return found


def differences(ours: object, theirs: object, path: str = "result") -> list[str]:
    """Returns where two nested results differ."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict)
        extra = [f"{path}: entries {sorted(ours)} and {sorted(theirs)}"] if set(ours) != set(theirs) else []
        return extra + [d for key in set(ours) & set(theirs) for d in differences(ours[key], theirs[key], f"{path}[{key!r}]")]
    if isinstance(theirs, (list, tuple)):
        assert isinstance(ours, (list, tuple))
        if len(ours) != len(theirs):
            return [f"{path}: {ours} and {theirs}"]
        return [d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    if isinstance(theirs, (float, np.ndarray, np.floating)):
        a, b = np.asarray(ours), np.asarray(theirs)
        near = a.shape == b.shape and np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
        return [] if near else [f"{path}: {a.shape} {a.ravel()[:5]} and {b.shape} {b.ravel()[:5]}"]
    return [] if ours == theirs else [f"{path}: {ours!r} and {theirs!r}"]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_a_keras_program_computes_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = run(PROGRAMS[name], "keras")
    ours = run(PROGRAMS[name], "convolt")
    assert not (found := differences(ours, theirs)), "\n".join(found)


def test_differences_are_seen() -> None:
    assert differences({"a": [1.0, np.zeros(2)]}, {"a": [1.0, np.zeros(2)]}) == []
    assert differences({"a": 1.0}, {"a": 1.1}) and differences({"a": 1.0}, {"b": 1.0}) and differences([1], [1, 2])
    assert differences({"a": np.zeros(2)}, {"a": np.zeros((2, 1))}) and differences("x", "y")
