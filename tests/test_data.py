"""Images without a download, and CIFAR-10 from a server on this machine."""

import hashlib
import http.server
import io
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time

import pytest
import torch
from torchvision.datasets import CIFAR10

from vit_lessons import download
from vit_lessons.data import (
    DatasetError,
    ImageDataset,
    crop_photographs,
    load_cifar10,
    load_data,
    load_digits,
    load_photograph,
    split_digits,
)


@pytest.mark.parametrize("name", ["china", "flower"])
def test_a_photograph_has_427_x_640_pixels_in_0_to_1(name):
    image = load_photograph(name)
    assert image.shape == (3, 427, 640)
    assert image.dtype == torch.float32
    assert (image.min(), image.max()) == (0, 1)


def test_the_two_photographs_differ():
    assert not load_photograph("china").equal(load_photograph("flower"))


@pytest.mark.parametrize("size", [(224, 224), (60, 200), (200, 60), (1, 1)])
def test_a_size_is_height_then_width(size):
    image = load_photograph(size=size)
    assert image.shape == (3, *size)
    assert 0 <= image.min() <= image.max() <= 1


def test_an_int_is_a_square_of_the_middle():
    small = load_photograph(size=61)
    middle = load_photograph()[:, :, 106:533]  # 427 x 427
    means = middle.unflatten(1, (61, 7)).unflatten(3, (61, 7)).mean((2, 4))
    assert (small - means).abs().mean() < 0.02


def test_an_unknown_photograph_is_refused():
    with pytest.raises(ValueError, match=r'"china" or "flower", got \'cat\''):
        load_photograph("cat")


def places_of(crop, photographs, columns):
    """Where the crop stands in the given columns of the photographs."""
    part = photographs[..., columns]
    windows = part.unfold(2, crop.shape[1], 1).unfold(3, crop.shape[2], 1)
    same = windows == crop[None, :, None, None]  # (2, 3, rows, columns, H, W)
    return same.all(dim=5).all(dim=4).all(dim=1).nonzero().tolist()


def test_crops_are_cut_from_the_photographs_and_test_crops_from_the_left():
    both = [load_photograph(name, (213, 320)) for name in ("china", "flower")]
    photographs = torch.stack(both)
    left, right = slice(120), slice(120, 320)
    for test, own, other in ((False, right, left), (True, left, right)):
        crops = crop_photographs(6, (8, 12), seed=3, test=test)
        assert crops.shape == (6, 3, 8, 12)
        found = [places_of(crop, photographs, own) for crop in crops]
        assert all(found)
        assert {place[0] for places in found for place in places} == {0, 1}
        assert not any(places_of(c, photographs, other) for c in crops)


def test_crops_come_from_everywhere_in_their_part():
    (corner,) = crop_photographs(1, (213, 200))  # the only place, one of two
    china, flower = (
        load_photograph(name, (213, 320))[..., 120:]
        for name in ("china", "flower")
    )
    assert corner.equal(china) or corner.equal(flower)
    pixels = crop_photographs(4000, (212, 1), seed=1)  # 2 rows, 200 columns
    kinds = {pixel.numpy().tobytes() for pixel in pixels}
    assert len(kinds) > 0.97 * 2 * 2 * 200


def test_a_seed_repeats_the_crops_and_another_one_does_not():
    crops = crop_photographs(5, 16, seed=1)
    assert crops.equal(crop_photographs(5, 16, seed=1))
    assert not crops.equal(crop_photographs(5, 16, seed=2))


@pytest.mark.parametrize(
    ("count", "size", "test", "message"),
    [
        (0, 8, False, "num_images must be positive, got 0"),
        (1, (214, 8), False, r"size must be at most \(213, 200\)"),
        (1, (8, 121), True, r"size must be at most \(213, 120\)"),
    ],
)
def test_crops_that_cannot_be_cut_are_refused(count, size, test, message):
    with pytest.raises(ValueError, match=message):
        crop_photographs(count, size, test=test)


def test_the_digits_are_1797_images_with_labels():
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


# What ImageDataset and split_digits promise.


def test_a_dataset_gives_each_image_with_its_label():
    images, labels = torch.rand(3, 2, 4, 5), torch.tensor([7, 8, 9])
    dataset = ImageDataset(images, labels)
    assert len(dataset) == 3
    for i, (image, label) in enumerate(dataset[i] for i in range(3)):
        assert torch.equal(image, images[i])
        assert label.shape == ()
        assert label == labels[i]


def test_a_transform_changes_the_image_when_it_is_asked_for():
    images, calls = torch.rand(2, 1, 4, 4), []

    def transform(image):
        calls.append(image)
        return 2 * image

    dataset = ImageDataset(images, torch.zeros(2), transform)
    assert calls == []
    assert torch.equal(dataset[1][0], 2 * images[1])
    assert torch.equal(dataset[1][0], 2 * images[1])
    assert len(calls) == 2


def test_a_dataset_can_be_sent_to_a_worker():
    """Where a worker is not forked, its data set is pickled."""
    dataset = ImageDataset(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1][0], dataset[1][0])


def test_a_dataset_with_too_few_labels_is_refused():
    with pytest.raises(ValueError, match="as many as images, got 2 and 3"):
        ImageDataset(torch.rand(3, 1, 4, 4), torch.zeros(2))


def image_key(image):
    return tuple(image.flatten().tolist())


def rows(images):
    return set(map(image_key, images))


def test_450_digits_are_for_the_test():
    digits = split_digits()
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    assert digits.train_images.shape == (1347, 1, 8, 8)
    assert digits.test_images.shape == (450, 1, 8, 8)
    images, labels = load_digits()
    both = torch.cat([digits.train_images, digits.test_images])
    assert rows(both) == rows(images)
    of_image = dict(zip(map(image_key, images), labels.tolist(), strict=True))
    found = torch.cat([digits.train_labels, digits.test_labels]).tolist()
    assert [of_image[image_key(image)] for image in both] == found


def test_no_digit_is_in_both_parts():
    digits = split_digits()
    assert not rows(digits.train_images) & rows(digits.test_images)


def test_each_digit_is_as_frequent_in_the_test_as_in_all():
    _, labels = load_digits()
    for seed in (0, 1):
        expected = labels.bincount() * 450 / 1797
        got = split_digits(seed).test_labels.bincount()
        assert (got - expected).abs().max() <= 1


def test_another_seed_is_another_split():
    first, again, other = (split_digits(seed) for seed in (3, 3, 4))
    assert torch.equal(first.test_images, again.test_images)
    assert not torch.equal(first.test_images, other.test_images)
    assert not torch.equal(first.test_labels, split_digits().test_labels)


def test_a_cpu_learns_the_digits():
    for device in ("cpu", torch.device("cpu")):
        data = load_data(device, folder="/dev/null/nowhere")
        assert data.name == "digits"
        assert torch.equal(data.test_images, split_digits().test_images)


# CIFAR-10: a small archive of the same form, from a server on this machine.

CLASSES = [f"class {i}" for i in range(10)]


def pixels(number):
    """Image `number`: each channel, row and column has its own value."""
    channel, row, column = torch.meshgrid(
        torch.arange(3), torch.arange(32), torch.arange(32), indexing="ij"
    )
    return (number + 70 * channel + 2 * row + column).to(torch.uint8)


def batch(numbers):
    """A batch as CIFAR-10 has it: all red pixels, then green, then blue."""
    data = torch.stack([pixels(n).flatten() for n in numbers]).numpy()
    return {"data": data, "labels": [n % 10 for n in numbers]}


def md5(content):
    return hashlib.md5(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.archive)))
        self.end_headers()
        self.wfile.write(self.server.archive[: self.server.sent])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server with a small CIFAR-10, which torchvision takes for the true."""
    files = {
        f"data_batch_{i}": batch([10 * i, 10 * i + 3]) for i in range(1, 6)
    }
    files["test_batch"] = batch([7, 8, 9])
    files["batches.meta"] = {"label_names": CLASSES}
    stored, sums = io.BytesIO(), {}
    with tarfile.open(fileobj=stored, mode="w:gz") as tar:
        for name, content in files.items():
            content = pickle.dumps(content, protocol=2)
            sums[name] = md5(content)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    meta = {**CIFAR10.meta, "md5": sums.pop("batches.meta")}
    test_list = [["test_batch", sums.pop("test_batch")]]
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.archive, server.sent = stored.getvalue(), None
    server.status, server.requests = 200, 0
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    monkeypatch.setattr(CIFAR10, "url", url)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(server.archive))
    monkeypatch.setattr(CIFAR10, "train_list", list(map(list, sums.items())))
    monkeypatch.setattr(CIFAR10, "test_list", test_list)
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def is_whole(data):
    """Is it the small CIFAR-10?"""
    train = torch.stack(
        [pixels(10 * i + j) for i in range(1, 6) for j in (0, 3)]
    )
    test = torch.stack([pixels(n) for n in (7, 8, 9)])
    return (
        torch.equal(data.train_images, train)
        and torch.equal(data.test_images, test)
        and data.train_labels.tolist() == [0, 3] * 5
        and data.test_labels.tolist() == [7, 8, 9]
        and data.classes == tuple(CLASSES)
    )


def test_cifar10_is_downloaded_and_read(server, tmp_path):
    data = load_cifar10(tmp_path / "new" / "folder")
    assert data.name == "CIFAR-10"
    assert data.train_images.dtype == data.test_images.dtype == torch.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_images.is_contiguous()
    assert is_whole(data)


def test_a_gpu_learns_cifar10(server, tmp_path):
    for device in ("cuda", "meta", torch.device("cuda")):
        assert is_whole(load_data(device, tmp_path))


def test_the_second_call_needs_no_network(server, tmp_path):
    load_cifar10(tmp_path)
    before = server.requests
    server.status = 503
    assert is_whole(load_cifar10(tmp_path))
    assert server.requests == before > 0


def test_an_archive_that_lies_there_is_used(server, tmp_path):
    (tmp_path / CIFAR10.filename).write_bytes(server.archive)
    assert is_whole(load_cifar10(tmp_path))
    assert server.requests == 0


def no_network(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/a.tar.gz")


def test_without_a_network_the_error_says_what_to_do(
    server, tmp_path, monkeypatch
):
    no_network(monkeypatch)
    with pytest.raises(DatasetError) as caught:
        load_cifar10(tmp_path)
    text = str(caught.value)
    assert "there is no connection. Connect and try again" in text
    assert f"download {CIFAR10.url} elsewhere" in text
    assert f"put it at {tmp_path / CIFAR10.filename}" in text
    assert "refused" in text


def test_without_a_network_a_gpu_learns_the_digits(
    server, tmp_path, monkeypatch
):
    no_network(monkeypatch)
    with pytest.warns(UserWarning, match="no connection") as caught:
        data = load_data("cuda", tmp_path)
    assert data.name == "digits"
    assert torch.equal(data.test_images, split_digits().test_images)
    assert "Going on with the digits" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_server_that_refuses_is_named(server, tmp_path, status):
    server.status = status
    with pytest.raises(DatasetError, match=f"does not send .* Error {status}"):
        load_cifar10(tmp_path)


@pytest.fixture
def timeout():
    """That of this program, in seconds; without one a test might hang."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    yield 20
    socket.setdefaulttimeout(before)


def test_a_server_that_never_answers_is_given_up(
    server, tmp_path, monkeypatch, timeout
):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/a.tar.gz")
        begin = time.monotonic()
        with pytest.raises(DatasetError, match="no connection"):
            load_cifar10(tmp_path)
        assert time.monotonic() - begin < 10
    assert socket.getdefaulttimeout() == timeout


def test_the_timeout_of_other_connections_stays(server, tmp_path, timeout):
    load_cifar10(tmp_path)
    assert socket.getdefaulttimeout() == timeout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_is_named(server, tmp_path):
    (tmp_path / CIFAR10.filename).symlink_to("/dev/full")
    with pytest.raises(DatasetError, match=r"full.*room.*No space left"):
        load_cifar10(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    with pytest.raises(DatasetError, match=f"{folder} cannot be used. Name a"):
        load_cifar10(folder)


def damaged(server, folder):
    """The files that the message says to delete."""
    with pytest.raises(DatasetError, match="damaged or not complete") as caught:
        load_cifar10(folder)
    text = str(caught.value)
    assert f"Delete {folder / CIFAR10.base_folder} and {folder}/" in text
    shutil.rmtree(folder / CIFAR10.base_folder, ignore_errors=True)
    (folder / CIFAR10.filename).unlink(missing_ok=True)


@pytest.mark.parametrize("sent", [0, 100, -1])
def test_an_archive_that_breaks_off_is_named(server, tmp_path, sent):
    server.sent = sent
    damaged(server, tmp_path)
    server.sent = None
    assert is_whole(load_cifar10(tmp_path))


def test_another_archive_is_refused(server, tmp_path):
    good = server.archive
    server.archive = b"something else"
    damaged(server, tmp_path)
    server.archive = good
    assert is_whole(load_cifar10(tmp_path))


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch"])
@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_a_damaged_file_is_read_from_the_archive_again(
    server, tmp_path, name, content
):
    load_cifar10(tmp_path)
    before = server.requests
    path = tmp_path / CIFAR10.base_folder / name
    path.unlink() if content is None else path.write_bytes(content)
    assert is_whole(load_cifar10(tmp_path))
    assert server.requests == before


def test_after_what_the_message_says_damaged_names_are_whole(server, tmp_path):
    load_cifar10(tmp_path)
    (tmp_path / CIFAR10.base_folder / "batches.meta").write_bytes(b"damaged")
    damaged(server, tmp_path)
    assert is_whole(load_cifar10(tmp_path))
