"""A task of characters on text that the program makes itself: numbers in words, "three hundred seven", are read and counted.

Each word has another length, so the texts are padded with 0 and masked: an `Embedding` that hides the padding, a GRU in both
directions, and for each character the class of the word that it belongs to: a digit, a ten, a scale, or the space between.

    python examples/character_sequences.py --epochs 4
"""

import argparse

import numpy as np

import convolt
from convolt import layers

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
LETTERS = sorted(set("".join([*ONES, *TENS, "hundred thousand"])))
ALPHABET = {letter: i + 1 for i, letter in enumerate(LETTERS)}  # 0 is padding
KINDS = ["space", "one", "teen", "ten", "scale"]


def words(number: int) -> list[str]:
    """Returns a number from 0 to 999,999 in English words."""
    if number >= 1000:
        return [*words(number // 1000), "thousand", *(words(number % 1000) if number % 1000 else [])]
    if number >= 100:
        return [ONES[number // 100], "hundred", *(words(number % 100) if number % 100 else [])]
    if number >= 20:
        return [TENS[number // 10], *([ONES[number % 10]] if number % 10 else [])]
    return [ONES[number]]


def kind(word: str) -> str:
    """Returns the class of a word; "six", "sixteen" and "sixty" begin alike, so the way back has to tell them apart."""
    if word in ONES:
        return "one" if ONES.index(word) < 10 else "teen"
    return "ten" if word in TENS else "scale"


def encode(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (characters, class of each character), both (N, longest) and padded with 0."""
    texts = [[(letter, kind(word)) for word in words(n) for letter in word + " "] for n in numbers.tolist()]
    x, y = np.zeros((2, len(texts), max(map(len, texts))), "int64")
    for row, text in enumerate(texts):
        x[row, :len(text)] = [ALPHABET[letter] for letter, _ in text]
        y[row, :len(text)] = [KINDS.index("space" if letter == " " else kind) for letter, kind in text]
    return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=6000)
    options = parser.parse_args()

    convolt.utils.set_random_seed(0)
    numbers = np.random.default_rng(0).choice(1_000_000, options.samples, replace=False)
    x, y = encode(numbers)
    split = options.samples * 5 // 6
    model = convolt.Sequential([
        layers.Input((None,), dtype="int64"),  # texts of any length
        layers.Embedding(len(ALPHABET) + 1, 16, mask_zero=True),
        layers.Bidirectional(layers.GRU(32, return_sequences=True)),
        layers.Dense(len(KINDS), activation="softmax"),
    ])
    model.compile(convolt.optimizers.Adam(0.005), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x[:split], y[:split], batch_size=64, epochs=options.epochs, validation_split=0.1)
    _, accuracy = model.evaluate(x[split:], y[split:], verbose=0)
    text = "six hundred sixteen thousand sixty six"
    letters = np.array([[ALPHABET[letter] for letter in text]])
    guess = model.predict(letters, verbose=0).argmax(-1)[0]
    print(text)
    print("".join(KINDS[k][0] if KINDS[k] != "space" else " " for k in guess), " (o: one, t: ten or teen, s: scale)")
    print(f"test accuracy: {accuracy:.4f} of the characters, padding not counted")


if __name__ == "__main__":
    main()
