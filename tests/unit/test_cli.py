"""The command line: what is understood, what is refused, and with which words and exit codes."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convolt.cli.main import main, normalized
from convolt.cli.train import TrainOptions

OWN_MODEL = """
import convolt
from convolt import layers

def make(input_shape, classes):
    return convolt.Sequential([layers.Input(input_shape), layers.Flatten(), layers.Dense(classes)])

def make_unbuilt():
    return convolt.Sequential([layers.Flatten(), layers.Dense(3, activation="softmax")])

def make_wrong(input_shape, classes):
    return convolt.Sequential([layers.Input(input_shape), layers.Flatten(), layers.Dense(classes + 1)])

def make_nothing():
    pass

def fails(input_shape, classes):
    return undefined_name

def asks_for_more(a, b, c):
    return None

class Net(convolt.Model):
    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.flatten, self.dense = layers.Flatten(), layers.Dense(classes, activation="softmax")

    def forward(self, x):
        return self.dense(self.flatten(x))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a small data set of three classes, brightness alone, and models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.integers(0, 40, (60, 6, 5, 1)) + 80 * y[:, None, None, None]).astype(np.uint8)
    np.savez("small.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:], class_names=["dark", "grey", "bright"])
    np.savez("no_test.npz", x=x, y=y)
    Path("net.py").write_text(OWN_MODEL, encoding="utf-8")
    return tmp_path


def run_train(*extra: str, model: str = "net.py:make", data: str = "small.npz") -> int:
    return main(["train", model, "--data", data, "--epochs", "2", "--batch-size", "16", "--device", "cpu", *extra])


# -- start and help ----------------------------------------------------------------------------------------------------


def test_help_comes_at_once_and_without_pytorch() -> None:
    code = (
        "import sys, time; start = time.process_time()\nfrom convolt.cli.main import main\nmain(['--help'])\n"
        "print(time.process_time() - start, sorted({'torch', 'numpy', 'matplotlib', 'h5py'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in ("train", "evaluate", "predict", "summary", "doctor"):
        assert verb in done.stdout
    seconds, _, imported = done.stdout.splitlines()[-1].partition(" ")
    assert imported == "[]"
    assert float(seconds) < 1.0  # of the CPU; the clock would tell what else the machine does


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "summary", "doctor"])
def test_each_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "Usage: convolt " + verb in capsys.readouterr().out


def test_python_m_convolt_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "convolt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("convolt 0.")


def test_nothing_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    both = capsys.readouterr()
    assert "train" in both.out + both.err


# -- wrong command lines: exit code 2 and the nearest right word -------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian cnn", ["trian", "'train'"]),
        ("train cnn --dat digits", ["--dat", "'--data'"]),
        ("train cnn --data digits --epoch 3", ["--epoch", "'--epochs'"]),
        ("train cnn --data digits --batchsize 3", ["'--batch-size'"]),
        ("train cnn", ["--data"]),
        ("train cnn --data digits --epochs five", ["--epochs", "five"]),
        ("train cnn --data digits --epochs 0", ["--epochs", "0"]),
        ("train cnn --data digits --lr -1", ["--learning-rate", "-1", "above 0"]),
        ("train cnn --data digits --lr nan", ["above 0"]),
        ("train cnn --data digits --validation-split 1.5", ["--validation-split", "1.5"]),
        ("train cnn --data digits --device cudo", ["cudo", "'cuda'"]),
        ("train cnn --data digits --precision float16", ["--precision", "float16", "bfloat16"]),
        ("train cnn --data digits --fusions bn+rel", ["bn+rel", "'bn+relu'"]),
        ("train cnn --data digits --execution graph", ["--execution", "graph", "eager"]),
        ("train cnn --data digits --micro-batch 0", ["--micro-batch", "0"]),
        ("train cnn --data digits --steps-per-execution 0", ["--steps-per-execution", "neither a whole number"]),
        ("train cnn --data digits --seed -1", ["--seed", "-1"]),
        ("train cnn --data digits --image-size 8x", ["--image-size"]),
        ("train cnn --data digits --lr 0.1 --learning-rate 0.2", ["--lr and --learning-rate", "once"]),
        ("train cnn --data digits --data mnist", ["--data is given twice"]),
        ("train cnn --data digts", ["digts", "'digits'"]),
        ("train cn --data digits", ["'cn'", "'cnn'"]),
        ("train cnn --data digits --optimizer adm", ["adm", "'adam'"]),
        ("train cnn --data digits --schedule cosin", ["cosin", "'cosine'"]),
        ("train cnn --data digits --loss mean_squred_error", ["mean_squared_error"]),
        ("train cnn --data digits --metrics acuracy", ["'accuracy'"]),
        ("train cnn --data digits --name a/b", ["a/b"]),
        ("train nett.py:make --data small.npz", ["nett.py", "'net.py'"]),
        ("train net.py:mak --data small.npz", ["mak", "'make'"]),
        ("train net.py --data small.npz", ["net.py:NAME", "make"]),
        ("evaluate cnn --data digits", [".safetensors"]),
        ("summary cnn", ["--data", "--input-shape"]),
        ("summary cnn --data digits --input-shape 8,8,1", ["one of them"]),
        ("summary cnn --input-shape 8,a", ["--input-shape"]),
        ("predict model.safetensors", ["INPUT"]),
    ],
)
def test_a_wrong_line_ends_with_2_and_says_what_is_right(
    line: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    for word in words:
        assert word in shown.err
    assert "Traceback" not in shown.err
    assert not Path("runs").exists()


def test_underscores_stand_for_hyphens_in_names_of_options_alone() -> None:
    assert normalized(["train", "a_b", "--batch_size", "3", "--validation_split=0.1", "--name=a_b", "--", "--x_y"]) == [
        "train",
        "a_b",
        "--batch-size",
        "3",
        "--validation-split=0.1",
        "--name=a_b",
        "--",
        "--x_y",
    ]


# -- failures: exit code 1 and one message -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train cnn --data nowhere/data.npz", ["nowhere/data.npz", "does not exist"]),
        ("train net.py:make_nothing --data small.npz", ["NoneType", "convolt.Model"]),
        ("train net.py:fails --data small.npz", ["net.py:fails, line 18", "NameError", "undefined_name", "--debug"]),
        ("train net.py:make_wrong --data small.npz", ["(None, 4)", "3 classes"]),
        ("train net.py:asks_for_more --data small.npz", ["(a, b, c)", "(input_shape, classes)"]),
        ("train broken.py:make --data small.npz", ["broken.py, line 2", "SyntaxError"]),
        ("evaluate nowhere.safetensors --data digits", ["nowhere.safetensors", "no such file"]),
        ("evaluate damaged.safetensors --data digits", ["damaged.safetensors"]),
    ],
)
def test_a_failure_ends_with_1_and_one_message(
    line: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.py").write_text("def make():\n    return (\n", encoding="utf-8")
    Path("damaged.safetensors").write_bytes(b"\xff" * 50)
    assert main(line.split()) == 1
    shown = capsys.readouterr()
    for word in words:
        assert word in shown.err
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") == 1


def test_debug_shows_the_traceback_wherever_it_stands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("--debug train net.py:fails --data small.npz", "train net.py:fails --data small.npz --debug"):
        assert main(line.split()) == 1
        shown = capsys.readouterr().err
        assert "Traceback" in shown
        assert "return undefined_name" in shown


def test_a_missing_device_is_told_with_what_was_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cnn", "--data", "small.npz", "--device", "cuda:99"]) == 1
    assert "cuda" in capsys.readouterr().err
    assert not Path("runs").exists()


# -- models of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["make", "make_unbuilt", "Net"])
def test_a_function_or_class_in_a_file_is_trained(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(model=f"net.py:{name}") == 0
    shown = capsys.readouterr().out
    assert Path("runs/net-small/model.safetensors").is_file()
    assert ("of logits" in shown) == (name == "make")  # its outputs are no probabilities
    code = ["--code", "net.py"] if name == "Net" else []
    assert ("--code net.py" in shown) == (name == "Net")
    assert main(["evaluate", "runs/net-small/model.safetensors", "--data", "small.npz", *code]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_model_of_an_own_class_needs_its_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(model="net.py:Net") == 0
    assert main(["summary", "runs/net-small/model.safetensors"]) == 1
    assert "--code FILE.py" in capsys.readouterr().err


def test_a_pytorch_module_is_trained_and_its_weights_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("module.py").write_text(
        "import convolt, torch\n"
        "def make(input_shape, classes):\n"
        "    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, classes))\n"
        "    return convolt.Model.wrap(module, input_shape)\n",
        encoding="utf-8",
    )
    assert run_train(model="module.py:make") == 0
    assert "weights alone" in capsys.readouterr().out
    assert Path("runs/module-small/weights.safetensors").is_file()


def test_a_schedule_spans_the_training(folder: Path) -> None:
    assert run_train("--schedule", "cosine", "--lr", "0.01") == 0
    with open("runs/net-small/history.csv", newline="", encoding="utf-8") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert 0.01 > rates[0] > rates[1] == pytest.approx(0, abs=1e-6)


# -- data and what is held out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "extra", "said", "counts"),
    [
        ("small.npz", [], "the test set (15 samples)", (45, 15, 15)),
        ("small.npz", ["--validation_split", "0.2"], "20% held out of the training set (9 samples)", (36, 9, 15)),
        ("no_test.npz", [], "10% held out of the training set (6 samples)", (54, 6, 6)),
        ("no_test.npz", ["--validation-split", "0"], "none: results are on the training set itself", (60, None, 60)),
    ],
)
def test_what_validates_is_said_and_written(
    data: str, extra: list[str], said: str, counts: tuple[int, int | None, int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(*extra, data=data) == 0
    assert said in capsys.readouterr().out
    written = json.loads(Path(f"runs/net-{Path(data).stem}/config.json").read_text(encoding="utf-8"))["data"]
    assert (written["train"], written["validation"], written["test"]) == counts


def test_a_folder_of_pictures_is_resized_for_training_and_for_the_saved_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name, value in (("dark", 10), ("bright", 220)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(np.full((20 + i, 30, 3), value, np.uint8)).save(folder / "photos" / name / f"{i}.png")
    assert run_train("--image_size", "9,7", "--color-mode", "grayscale", data="photos") == 0
    assert "22 samples of 9×7×1 uint8 to train, 2 to test, 2 classes" in capsys.readouterr().out
    assert main(["evaluate", "runs/net-photos/model.safetensors", "--data", "photos"]) == 0
    shown = capsys.readouterr().out
    assert "all of photos, which has no test part (24 samples)" in shown
    assert "bright" in shown


def test_classes_that_are_not_the_models_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train() == 0
    with np.load("small.npz") as arrays:
        np.savez("other.npz", **{**arrays, "class_names": ["red", "green", "blue"]})
    assert main(["evaluate", "runs/net-small/model.safetensors", "--data", "other.npz"]) == 1
    assert "red, green, blue" in capsys.readouterr().err


def test_numbers_instead_of_classes_are_trained_with_mse(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.savez("curve.npz", x_train=x, y_train=(x.sum(axis=1, keepdims=True) / 4).astype(np.float32))
    assert run_train(data="curve.npz") == 0
    shown = capsys.readouterr().out
    assert "mean squared error" in shown
    assert "accuracy" not in shown
    assert main(["predict", "runs/net-curve/model.safetensors", "curve.npz", "--out", "table.csv"]) == 0
    assert len(Path("table.csv").read_text(encoding="utf-8").splitlines()) == 41


# -- predict, summary, doctor ------------------------------------------------------------------------------------------


@pytest.fixture
def trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_train("--optimizer", "sgd") == 0
    capsys.readouterr()
    return "runs/net-small/model.safetensors"


def test_predict_takes_pictures_folders_and_arrays(trained: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    (folder / "pictures" / "deep").mkdir(parents=True)
    Image.fromarray(np.full((12, 10, 3), 20, np.uint8)).save("pictures/one.png")
    Image.fromarray(np.full((6, 5), 200, np.uint8)).save("pictures/deep/two.png")
    Path("pictures/broken.jpg").write_bytes(b"no picture")
    Path("pictures/notes.txt").write_text("no picture", encoding="utf-8")
    np.save("array.npy", np.zeros((2, 6, 5), np.uint8))
    assert main(["predict", trained, "pictures/one.png", "pictures", "array.npy", "--top", "2", "--out", "table.csv"]) == 0
    shown = capsys.readouterr().out
    assert "skipped pictures/broken.jpg" in shown
    with open("table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == [
        "pictures/one.png",
        "pictures/deep/two.png",
        "pictures/one.png",
        "array.npy[0]",
        "array.npy[1]",
    ]
    assert list(rows[0]) == ["input", "class", "probability", "class_2", "probability_2"]
    assert rows[0]["class"] in ("dark", "grey", "bright")
    assert rows[0] == rows[2]
    assert 0.33 < float(rows[0]["probability"]) <= 1


@pytest.mark.parametrize(
    ("what", "words"),
    [("absent.png", "does not exist"), ("empty", "without pictures"), ("broken.png", "broken.png"), ("wrong.npy", "shape")],
)
def test_predict_says_what_it_cannot_use(
    what: str, words: str, trained: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("broken.png").write_bytes(b"\x89PNG broken")
    np.save("wrong.npy", np.zeros((2, 9, 9, 1), np.uint8))
    assert main(["predict", trained, what]) == 1
    assert words in capsys.readouterr().err


def test_summary_of_names_files_and_code(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "cnn", "--input_shape", "28x28x1", "--classes", "7"]) == 0
    shown = capsys.readouterr().out
    assert "(None, 28, 28, 32)" in shown
    assert "(None, 7)" in shown
    assert main(["summary", "net.py:make", "--data", "small.npz"]) == 0
    assert "Parameters: 93" in capsys.readouterr().out
    assert main(["summary", trained]) == 0
    assert "Classes: 3: dark, grey, bright" in capsys.readouterr().out


def test_doctor_reports_and_its_exit_code_tells_of_problems(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from convolt import doctor

    expected = 1 if doctor.problems(doctor.report()) else 0
    assert main(["doctor"]) == expected
    shown = capsys.readouterr().out
    for section in ("Packages", "Devices", "Features", "Folders", "Data"):
        assert section in shown
    assert main(["doctor", "--json"]) == expected
    assert {"section", "name", "value", "state", "fix"} == set(json.loads(capsys.readouterr().out)[0])


# -- the line that repeats a run, and Ctrl-C ---------------------------------------------------------------------------


def test_the_command_holds_what_differs_from_the_defaults() -> None:
    options = TrainOptions("cnn", "my data", epochs=3, learning_rate=0.01, metrics=("accuracy", "f1"))
    assert options.as_command() == [
        "convolt",
        "train",
        "cnn",
        "--data",
        "my data",
        "--epochs",
        "3",
        "--learning-rate",
        "0.01",
        "--metrics",
        "accuracy,f1",
        "--seed",
        "0",
    ]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_training_writes_what_there_is(number: str, expected: int, folder: Path) -> None:
    import signal

    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "convolt",
            "train",
            "net.py:make",
            "--data",
            "small.npz",
            "--epochs",
            "100000",
            "--verbose",
            "2",
            "--device",
            "cpu",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    history = folder / "runs" / "net-small" / "history.csv"
    deadline = time.monotonic() + 60
    while not history.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(getattr(signal, number))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == expected, output
    assert "Stopped" in output
    assert "Traceback" not in output
    names = {path.name for path in history.parent.iterdir()}
    assert {"config.json", "command.txt", "history.csv", "history.png", "first_batch.png", "model.safetensors"} <= names
    assert json.loads((history.parent / "config.json").read_text(encoding="utf-8"))["status"] == "stopped"
    assert len(history.read_text(encoding="utf-8").splitlines()) > 1
