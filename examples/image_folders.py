"""A CNN on pictures in folders, sheared, zoomed and mirrored anew in each epoch; accuracy, precision and recall on the test folder.

    python examples/image_folders.py --data FOLDER --epochs 10 [--size 224] [--show grid.png]

FOLDER has train/ and test/, each with one folder of pictures per class. Pictures of any size become 224×224. Where they all fit into
memory, each is decoded once, and what the generator asks for is done inside the step; the line `data resident` says so. CIFAR-10 as JPEGs
is such a folder once it is unpacked:

    mkdir cifar10 && tar -xf cifar10-jpeg.tar.xz -C cifar10
    python examples/image_folders.py --data cifar10
"""

import argparse
from pathlib import Path

import convolt
from convolt import layers
from convolt.preprocessing.image import ImageDataGenerator


def build(size: int, classes: int) -> convolt.Sequential:
    """Five times convolution and pooling, then two dense layers; on values from 0 to 1."""
    model = convolt.Sequential([layers.Input((size, size, 3))])
    for filters in (16, 32, 64, 64, 64):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(64, activation="relu"))
    model.add(layers.Dense(classes, activation="softmax"))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="with train/ and test/, one folder per class in each")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="height and width of the pictures")
    parser.add_argument("--show", type=Path, metavar="FILE.png", help="draw a batch as the model gets it")
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    changed = ImageDataGenerator(rescale=1 / 255, shear_range=0.2, zoom_range=0.2, horizontal_flip=True)
    plain = ImageDataGenerator(rescale=1 / 255)
    size = (options.size, options.size)
    train = changed.flow_from_directory(options.data / "train", size, batch_size=options.batch, class_mode="categorical", seed=0)
    test = plain.flow_from_directory(options.data / "test", size, batch_size=options.batch, class_mode="categorical", shuffle=False)
    classes = list(train.class_indices)

    model = build(options.size, len(classes))
    model.class_names = classes
    model.compile("adam", "categorical_crossentropy", ["accuracy", "precision", "recall"])
    model.summary()
    if options.show:
        model.show_batch(train, path=options.show)
    model.fit(train, epochs=options.epochs, steps_per_epoch=len(train))
    results = model.evaluate(test, steps=len(test), return_dict=True)
    print(f"test accuracy {results['accuracy']:.4f}, precision {results['precision']:.4f}, recall {results['recall']:.4f}")


if __name__ == "__main__":
    main()
