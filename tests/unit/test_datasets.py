"""Data sets by name: where they are looked for, how they are downloaded, what is said when they are not there."""

import hashlib
import http.server
import importlib.util
import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from convolt.data import datasets, files
from convolt.data.download import Remote, download, fetch
from convolt.datasets import cifar10, digits, mnist
from convolt.errors import DataError, MissingPackageError

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each path with what the server's `replies` list says next; the last reply stays."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        status, body, announced = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        self.send_response(status)
        if announced is not None:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.replies = [], [(200, CONTENT, len(CONTENT))]
        running.url = f"http://127.0.0.1:{running.server_address[1]}/set.bin"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Every test has a cache of its own and no data folder."""
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVOLT_DATA", raising=False)
    return tmp_path


def remote(server, **changes):
    return Remote(**{"name": "set.bin", "url": server.url, "sha256": SHA, "max_bytes": 2 * len(CONTENT), **changes})


# -- places ------------------------------------------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert files.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CONVOLT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "convolt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "convolt"


def test_data_folder_comes_before_the_cache(monkeypatch, tmp_path):
    for folder in (tmp_path / "mine", files.download_folder()):
        folder.mkdir(parents=True)
        (folder / "set.bin").write_bytes(b"x")
    assert files.find("set.bin") == files.download_folder() / "set.bin"
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path / "mine"))
    assert files.find("set.bin") == tmp_path / "mine" / "set.bin"


def test_data_folder_that_does_not_exist_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"CONVOLT_DATA: got .*nowhere.*expected an existing folder"):
        mnist.load_data()


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_download_verifies_and_keeps_the_file(server, tmp_path, capsys):
    path = fetch(remote(server))
    assert path == tmp_path / "cache" / "datasets" / "set.bin"
    assert path.read_bytes() == CONTENT
    assert "Downloading set.bin: 1.0 of 1.0 MB" in capsys.readouterr().err
    assert fetch(remote(server)) == path
    assert len(server.requests) == 1, "the second call takes the copy"
    assert [p.name for p in path.parent.iterdir()] == ["set.bin"], "no temporary file is left"


def test_download_is_tried_again_after_errors_and_damage(server, tmp_path):
    wrong = b"\0" * len(CONTENT)
    server.replies = [(503, b"busy", 4), (200, CONTENT[:1000], len(CONTENT)), (200, wrong, len(wrong)), (200, CONTENT, None)]
    path = download(remote(server), tmp_path / "set.bin", pause=0.01)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 4


def test_pauses_double(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("convolt.data.download.time.sleep", pauses.append)
    server.replies = [(500, b"", 0)]
    with pytest.raises(DataError, match="HTTP Error 500"):
        download(remote(server), tmp_path / "set.bin", pause=1.0)
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("reply", "message"), [
    ((200, CONTENT[:1000], len(CONTENT)), "the connection ended after 1,000 of 1,024,000 bytes"),
    ((200, b"other", 5), "SHA-256 is d9298a10"),
])
def test_damage_that_stays_is_an_error_and_leaves_nothing(server, tmp_path, reply, message):
    server.replies = [reply]
    with pytest.raises(DataError, match=message):
        download(remote(server), tmp_path / "a" / "set.bin", pause=0.001)
    assert len(server.requests) == 4
    assert list((tmp_path / "a").iterdir()) == []


def test_missing_page_is_not_tried_again(server, tmp_path):
    server.replies = [(404, b"", 0)]
    with pytest.raises(DataError, match="HTTP Error 404"):
        download(remote(server), tmp_path / "set.bin", pause=0.001)
    assert len(server.requests) == 1


def test_endless_answer_is_cut(server, tmp_path):
    with pytest.raises(DataError, match="more than 1,000 bytes"):
        download(remote(server, max_bytes=1000), tmp_path / "set.bin")
    assert not (tmp_path / "set.bin").exists()


def test_only_web_addresses_are_opened(tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(DataError, match="https:// or http:// address"):
        download(Remote("set.bin", (tmp_path / "secret").as_uri(), SHA, 10**7), tmp_path / "set.bin")


def test_processes_that_download_at_once_do_not_disturb_each_other(server, tmp_path):
    target = tmp_path / "set.bin"
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(remote(server), target, stream=io.StringIO()), range(4)))
    assert paths == [target] * 4
    assert target.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["set.bin"]


def test_remains_of_a_killed_process_are_removed_but_not_those_at_work(server, tmp_path):
    old, young = tmp_path / ".set.bin.1-00.part", tmp_path / ".set.bin.2-00.part"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    download(remote(server), tmp_path / "set.bin")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".set.bin.2-00.part", "set.bin"]


def test_full_disk_is_told_at_once(server, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convolt.data.files.os.fsync", full)
    with pytest.raises(DataError, match=r"No space left.*CONVOLT_CACHE"):
        download(remote(server), tmp_path / "set.bin")
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "entry", "file"), [(mnist.load_data, "MNIST", "mnist.npz"),
                                                     (cifar10.load_data, "CIFAR10", "cifar-10-binary.tar.gz")])
def test_offline_message_names_file_places_and_remedy(monkeypatch, tmp_path, load, entry, file):
    known = getattr(datasets, entry)
    monkeypatch.setattr(datasets, entry, Remote(known.name, "http://127.0.0.1:9/" + file, known.sha256, known.max_bytes))
    monkeypatch.setattr("convolt.data.download.PAUSE_SECONDS", 0)
    monkeypatch.setattr("convolt.data.download.time.sleep", lambda seconds: None)
    with pytest.raises(DataError) as caught:
        load()
    text = str(caught.value)
    assert f"data set file {file}" in text
    assert "CONVOLT_DATA (not set)" in text
    assert f"put it at {tmp_path / 'cache' / 'datasets' / file}" in text
    assert "http://127.0.0.1:9/" in text


def test_published_addresses_and_checksums():
    assert datasets.MNIST.url == "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
    assert datasets.MNIST.sha256 == "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
    assert datasets.CIFAR10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert datasets.CIFAR10.sha256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


# -- cache of decoded arrays -------------------------------------------------------------------------------------------


def test_damaged_cache_is_made_again(tmp_path):
    calls = []

    def build():
        calls.append(1)
        return {"x": np.arange(1000)}

    files.cached_arrays("key", build)
    path = tmp_path / "cache" / "decoded" / "key.npz"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="damaged and is made again"):
        arrays = files.cached_arrays("key", build)
    np.testing.assert_array_equal(arrays["x"], np.arange(1000))
    np.testing.assert_array_equal(files.cached_arrays("key", build)["x"], np.arange(1000))
    assert len(calls) == 2


def test_cache_that_cannot_be_written_costs_a_warning_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CONVOLT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        arrays = files.cached_arrays("key", lambda: {"x": np.arange(3)})
    np.testing.assert_array_equal(arrays["x"], np.arange(3))


# -- digits and mnist --------------------------------------------------------------------------------------------------


def test_digits_are_scaled_split_by_class_and_always_the_same():
    pytest.importorskip("sklearn")
    (x, y), (x_test, y_test) = digits.load_data()
    assert x.shape == (len(y), 8, 8)
    assert x.dtype == y.dtype == np.uint8
    assert len(y) + len(y_test) == 1797
    assert x.min() == 0
    assert x.max() == 255
    share = np.bincount(y_test) / (np.bincount(y) + np.bincount(y_test))
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    (again, _), (again_test, _) = digits.load_data()
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(x_test, again_test)
    assert hashlib.sha256(x_test.tobytes()).hexdigest()[:16] == "87f8ef92d987d458", "the same on every machine"


def test_digits_are_read_without_importing_scikit_learn_or_by_it_where_the_file_is_elsewhere(monkeypatch):
    pytest.importorskip("sklearn")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)  # whose import is an error
        read = datasets._digits()
    from sklearn.datasets import load_digits

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    np.testing.assert_array_equal(read, datasets._digits())
    np.testing.assert_array_equal(read, np.column_stack(load_digits(return_X_y=True)))


def test_digits_without_scikit_learn_name_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'convolt\[demo\]'"):
        digits.load_data()


def test_mnist_file_with_other_arrays_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVOLT_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((5, 28, 28), np.uint8), y_train=np.zeros(5, np.uint8))
    with pytest.raises(DataError, match=r"x_train: got uint8 of shape \(5, 28, 28\); expected uint8 of shape \(60000, 28, 28\)"):
        mnist.load_data()


def test_mnist_from_a_path_of_ones_own(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        mnist.load_data(tmp_path / "copy.npz")
