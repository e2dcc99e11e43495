"""Weights that others trained, in memory, in files and from a server."""

import argparse
import functools
import hashlib
import http.server
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models._hub import save_config_for_hf
from torch import nn
from torchvision import models
from torchvision.transforms import v2

from vit_lessons import VisionTransformer, download, fit
from vit_lessons.data import load_photograph
from vit_lessons.weights import Preprocessing, WeightsError, read_weights

SIZES = {"img_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 2}


@functools.cache
def theirs():
    """A small Vision Transformer of timm, with random weights."""
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **SIZES)


def same(one, other):
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n])
        for n in one
    )


# Sources.


def test_a_state_dict_is_a_source():
    state = theirs().state_dict()
    weights = read_weights(state)
    assert same(weights.state_dict, state)
    assert weights.preprocessing is None


def write_bare(state, folder):
    torch.save(state, folder / "a.pt")
    return folder / "a.pt"


def write_under(entry, state, folder):
    other = {"model_ema": {}, "optimizer": {"step": 3}, "epoch": 2}
    torch.save(other | {entry: state}, folder / "a.pth.tar")
    return folder / "a.pth.tar"


def write_old(state, folder):
    path = folder / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def write_safe(state, folder):
    save_file(state, folder / "a.safetensors")
    return folder / "a.safetensors"


def write_hub(safe, state, folder):
    save_for_hf(theirs(), folder / "hub", safe_serialization=safe)
    return folder / "hub"


def write_saver(state, folder, args=None):
    """timm's training script, if args is None without its arguments."""
    optimizer = torch.optim.SGD(theirs().parameters(), lr=0.1)
    folders = {"checkpoint_dir": folder, "recovery_dir": folder}
    saver = timm.utils.CheckpointSaver(theirs(), optimizer, args, **folders)
    saver.save_checkpoint(0, metric=0.5)
    return folder / "last.pth.tar"


WRITERS = {
    "torch.save": write_bare,
    "under model": functools.partial(write_under, "model"),
    "under state_dict": functools.partial(write_under, "state_dict"),
    "an old file": write_old,
    "safetensors": write_safe,
    "safe folder": functools.partial(write_hub, True),
    "folder": functools.partial(write_hub, False),
    "timm's CheckpointSaver": write_saver,
}


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_weights_come_back_from_the_disk_bit_for_bit(tmp_path, write, kind):
    path = write(theirs().state_dict(), tmp_path)
    assert same(read_weights(kind(path)).state_dict, theirs().state_dict())


def test_the_checkpoint_of_fit_is_a_source(tmp_path):
    model = VisionTransformer(patch_size=8, num_classes=3, **SIZES)
    batches = [(torch.rand(4, 3, 16, 16), torch.arange(4) % 3)]
    fit(model, batches, batches, epochs=1, checkpoint=tmp_path / "a.pt")
    weights = read_weights(tmp_path / "a.pt")
    assert same(weights.state_dict, model.state_dict())


def test_a_folder_with_two_files_gives_the_safe_one(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path).state_dict["a"].tolist() == [1, 1]


@pytest.mark.parametrize("write", [write_bare, write_safe])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_numbers_keep_their_type(tmp_path, write, dtype):
    state = {"a": torch.arange(6).view(2, 3).to(dtype)}
    assert same(read_weights(write(state, tmp_path)).state_dict, state)


def test_tensors_that_share_memory_or_are_views_come_back(tmp_path):
    table = torch.arange(24.0).view(4, 6)
    state = {"a": table, "b": table, "c": table.T, "d": table[1:, ::2]}
    got = read_weights(write_bare(state, tmp_path)).state_dict
    assert same(got, state)


def test_parameters_are_tensors_too(tmp_path):
    torch.save({"a": nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").state_dict["a"].tolist() == [1, 1]


# What is refused.


@pytest.mark.parametrize(
    "source", ["no_such_file.pt", "timm", "timm/", "torchvision/", "a/b"]
)
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(ValueError, match=f"got '{source}', and there is no su"):
        read_weights(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("timm/no_such_model", "a model that timm has weights of.*no_such"),
        (
            "timm/vit_tiny_patch16_224.no_tag",
            "got 'vit_tiny_patch16_224.no_tag",
        ),
        ("timm/hf_hub:timm/vit_tiny", "got 'hf_hub:timm/vit_tiny'"),
        ("timm/vit_small_patch16_18x2_224", "got 'vit_small_patch16_18x2_224'"),
        ("torchvision/vit_tiny_patch16_224", "classifier that torchvision has"),
        ("torchvision/fcn_resnet50", "got 'fcn_resnet50'"),
        ("torchvision/vit_b_16.V9", "V1, IMAGENET1K_SWAG_E2E_V1.*got 'V9'"),
        ("torchvision/ViT_B_16", "got 'ViT_B_16'"),
    ],
)
def test_an_unknown_name_is_refused_without_a_network(source, said):
    with pytest.raises(ValueError, match=said):
        read_weights(source)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ([torch.ones(2)], "list"),
        (torch.ones(2), "Tensor"),
        (3.0, "float"),
        ({"a": 1.0}, "a dict with a"),
        ({"a": torch.ones(2), "b": None}, "a dict with a, b"),
        ({3: torch.ones(2)}, "a dict with 3"),
        ({"model": {"a": 1.0}}, "a dict with a"),
        ({"net": {"a": torch.ones(2)}}, "a dict with net"),
        ({"model": {"net": {"a": torch.ones(2)}}}, "a dict with net"),
    ],
)
def test_a_file_without_tensors_by_name_is_refused(tmp_path, state, found):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt must hold .*got {found}$"):
        read_weights(tmp_path / "a.pt")


def test_a_dict_without_tensors_is_refused():
    with pytest.raises(ValueError, match=r"source must .*got a dict with a, b"):
        read_weights({"a": torch.ones(2), "b": 3})


class Trap:
    """Whoever unpickles this runs code, which makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("where", ["alone", "model", "state_dict", "args"])
@pytest.mark.parametrize("how", ["torch.save", "old", "pickle", "folder"])
def test_a_file_that_runs_code_is_refused_and_does_not_run(
    tmp_path, where, how
):
    trap = Trap(tmp_path / "it ran")
    state = trap if where == "alone" else {"a": torch.ones(2), where: trap}
    path = tmp_path / "pytorch_model.bin"
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how != "old")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.* read safely"):
        read_weights(tmp_path if how == "folder" else path)
    assert not (tmp_path / "it ran").exists()


def test_a_whole_model_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt, which cannot be read safely"):
        read_weights(tmp_path / "a.pt")


def test_the_checkpoint_of_timm_with_its_arguments_is_refused(tmp_path):
    """They are an argparse.Namespace, not a plain value."""
    args = argparse.Namespace(model="vit", lr=0.1)
    path = write_saver(None, tmp_path, args)
    with pytest.raises(
        ValueError, match=r"cannot be read safely \(UnpicklingError\)"
    ):
        read_weights(path)


@pytest.mark.parametrize("write", [write_bare, write_old, write_safe])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_part_of_a_file_is_refused(tmp_path, write, share):
    path = write({"a": torch.rand(200), "b": torch.rand(9)}, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{path}, which cannot be read safe"):
        read_weights(path)


def test_a_file_under_the_wrong_name_is_refused(tmp_path):
    write_safe({"a": torch.ones(2)}, tmp_path).rename(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt, which cannot be read safely"):
        read_weights(tmp_path / "a.pt")
    write_bare({"a": torch.ones(2)}, tmp_path).rename(
        tmp_path / "b.safetensors"
    )
    with pytest.raises(ValueError, match=r"b\.safetensors, which cannot be"):
        read_weights(tmp_path / "b.safetensors")


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=f"or pytorch_model.bin, got {tmp_path}"
    ):
        read_weights(tmp_path)


# What the weights expect of an image.

COMPLETE = {
    "input_size": [3, 32, 32],
    "crop_pct": 0.9,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.1, 0.2, 0.3],
    "interpolation": "bicubic",
    "crop_mode": "center",
}


def preprocessing_of(config, folder):
    """That of a folder of timm whose config.json has this text or content."""
    text = config if isinstance(config, str) else json.dumps(config)
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(text)
    return read_weights(folder).preprocessing


def test_the_metadata_of_a_folder_are_read(tmp_path):
    expected = Preprocessing(
        32, 35, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bicubic"
    )
    got = preprocessing_of({"pretrained_cfg": COMPLETE}, tmp_path)
    assert got == expected  # 32 / 0.9 = 35.6
    without = {k: v for k, v in COMPLETE.items() if k != "crop_mode"}
    got = preprocessing_of({"pretrained_cfg": without}, tmp_path)
    assert got == expected


@pytest.mark.parametrize("key", [k for k in COMPLETE if k != "crop_mode"])
def test_metadata_that_are_not_complete_are_none(tmp_path, key):
    without = {k: v for k, v in COMPLETE.items() if k != key}
    assert preprocessing_of({"pretrained_cfg": without}, tmp_path) is None
    empty = COMPLETE | {key: None}
    assert preprocessing_of({"pretrained_cfg": empty}, tmp_path) is None


@pytest.mark.parametrize(
    "other",
    [
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"input_size": [3, 8, 9]},
    ],
)
def test_another_way_to_cut_an_image_is_none(tmp_path, other):
    config = {"pretrained_cfg": COMPLETE | other}
    assert preprocessing_of(config, tmp_path) is None


def test_a_folder_without_metadata_has_none(tmp_path):
    assert preprocessing_of({"architecture": "vit"}, tmp_path) is None
    (tmp_path / "config.json").unlink()
    assert read_weights(tmp_path).preprocessing is None


@functools.cache
def photograph():
    pixels = (255 * load_photograph()).round().to(torch.uint8)
    return v2.functional.to_pil_image(pixels)


def levels_apart(one, other, preprocessing):
    """Largest and mean difference in levels of 0 to 255, before std."""
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    gaps = 255 * std * (one - other).abs()
    return gaps.max().item(), gaps.mean().item()


def agree(preprocessing, transform):
    """The libraries resize a PIL image, this course a tensor of the same
    bytes: a few pixels are rounded to the next level, two where bicubic
    overshoots. One pixel more or less in resize moves the mean by 1 level."""
    one = preprocessing.transform()(photograph())
    other = transform(photograph())
    assert one.shape == other.shape
    assert one.dtype == torch.float32
    largest, mean = levels_apart(one, other, preprocessing)
    assert largest < 2.1
    assert mean < 0.02


NAMES = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "vit_base_patch16_384",
    "resnet18.tv_in1k",
    "mixer_b16_224",
]


@pytest.mark.parametrize("name", NAMES)
def test_images_are_prepared_as_timm_does(tmp_path, name):
    with torch.device("meta"):
        model = timm.create_model(name)
    save_config_for_hf(model, tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    config = timm.data.resolve_model_data_config(model)
    agree(
        preprocessing_of(text, tmp_path),
        timm.data.create_transform(**config, is_training=False),
    )


def test_the_vit_of_timm_does_not_expect_the_mean_of_imagenet(tmp_path):
    means = {}
    for name in ("vit_small_patch16_224", "deit_small_patch16_224"):
        with torch.device("meta"):
            model = timm.create_model(name)
        save_config_for_hf(model, tmp_path / "config.json")
        text = (tmp_path / "config.json").read_text()
        means[name] = preprocessing_of(text, tmp_path).mean
    assert means == {
        "vit_small_patch16_224": (0.5, 0.5, 0.5),
        "deit_small_patch16_224": (0.485, 0.456, 0.406),
    }


BICUBIC = Preprocessing(32, 35, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bicubic")


def test_an_image_and_its_pixels_are_prepared_alike():
    pixels = v2.functional.pil_to_tensor(photograph())
    one, other = map(BICUBIC.transform(), (photograph(), pixels))
    assert torch.equal(one, other)
    largest, _ = levels_apart(one, BICUBIC.transform()(pixels / 255), BICUBIC)
    assert largest < 20  # in float nothing is rounded, nor cut at 0 and 255


@pytest.mark.parametrize("size", [16, 32, 33, 224])
def test_another_size_shows_the_same_share_of_the_image(size):
    image = BICUBIC.transform(size)(photograph())
    assert image.shape == (3, size, size)
    resize = BICUBIC.transform(size).transforms[1].size
    assert resize == [round(35 * size / 32)]
    small = BICUBIC.transform()(photograph())
    back = v2.functional.resize(image, [32, 32], antialias=True)
    _, mean = levels_apart(back, small, BICUBIC)
    assert mean < 12


def test_pixels_lose_the_mean_and_are_divided_by_std():
    image = BICUBIC.transform()(torch.full((3, 50, 60), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor(BICUBIC.mean)) / torch.tensor(BICUBIC.std)
    assert image.shape == (3, 32, 32)
    torch.testing.assert_close(image.mean((1, 2)), expected)
    torch.testing.assert_close(image.amin((1, 2)), expected)


# Published weights of torchvision, from a server on this machine.


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Put a file on a server, and tell torchvision that it is the one."""
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(Quiet, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")

    def put(entry, state, digest=None):
        path = served / "weights.pth"
        torch.save(state, path)
        digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        path = path.rename(served / f"weights-{digest}.pth")
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        monkeypatch.setattr(entry.value, "url", url)
        return path

    yield put
    server.shutdown()
    thread.join()
    server.server_close()


V1 = models.ViT_B_16_Weights.IMAGENET1K_V1
LINEAR = models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1


def test_the_weights_of_torchvision_are_downloaded_once(publish):
    state = {"a": torch.rand(2, 3), "b": torch.rand(4)}
    path = publish(V1, state)
    assert same(read_weights("torchvision/vit_b_16").state_dict, state)
    path.unlink()
    assert same(read_weights("torchvision/vit_b_16").state_dict, state)


def test_the_name_says_which_weights(publish):
    publish(V1, {"a": torch.zeros(2)})
    publish(LINEAR, {"a": torch.ones(2)})
    for name, number in (
        ("", 0),
        (".IMAGENET1K_V1", 0),
        (".IMAGENET1K_SWAG_LINEAR_V1", 1),
    ):
        state = read_weights(f"torchvision/vit_b_16{name}").state_dict
        assert state["a"].tolist() == [number, number]


def test_a_download_with_another_hash_is_an_error(publish):
    publish(V1, {"a": torch.zeros(2)}, digest="0123abcd")
    for _ in range(2):  # nothing is kept of it
        with pytest.raises(WeightsError, match="0123abcd"):
            read_weights("torchvision/vit_b_16")


def test_weights_that_the_server_does_not_have_are_an_error(publish):
    publish(V1, {"a": torch.zeros(2)}).unlink()
    with pytest.raises(WeightsError, match=r"vit_b_16 could not .* 404"):
        read_weights("torchvision/vit_b_16")


def test_published_weights_that_run_code_are_refused(publish, tmp_path):
    publish(V1, {"a": Trap(tmp_path / "it ran")})
    with pytest.raises(WeightsError, match="Unpickling"):
        read_weights("torchvision/vit_b_16")
    assert not (tmp_path / "it ran").exists()


def test_without_a_network_the_error_says_what_to_do(publish, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/weights-01234567.pth"
    monkeypatch.setattr(V1.value, "url", url)
    with pytest.raises(
        WeightsError, match=r"vit_b_16 could .* refused.* give its path as sou"
    ):
        read_weights("torchvision/vit_b_16")


def test_a_server_that_never_answers_is_given_up(publish, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w-01234567.pth"
        monkeypatch.setattr(V1.value, "url", url)
        begin = time.monotonic()
        with pytest.raises(WeightsError, match="Connect and try again"):
            read_weights("torchvision/vit_b_16")
        assert time.monotonic() - begin < 10
    assert socket.getdefaulttimeout() == before


def test_the_timeout_of_other_connections_stays(publish):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        publish(V1, {"a": torch.zeros(2)})
        read_weights("torchvision/vit_b_16")
        assert socket.getdefaulttimeout() == 20
    finally:
        socket.setdefaulttimeout(before)


#: Side of the image and of the shorter side before, as torchvision's pages
#: of the models give them.
TORCHVISION = {
    models.ViT_B_16_Weights.IMAGENET1K_V1: (224, 256),
    models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1: (384, 384),
    models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1: (224, 224),
    models.ViT_B_32_Weights.IMAGENET1K_V1: (224, 256),
    models.ViT_L_16_Weights.IMAGENET1K_V1: (224, 242),
    models.ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1: (512, 512),
    models.ViT_L_16_Weights.IMAGENET1K_SWAG_LINEAR_V1: (224, 224),
    models.ViT_L_32_Weights.IMAGENET1K_V1: (224, 256),
    models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1: (518, 518),
    models.ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1: (224, 224),
    models.Swin_T_Weights.IMAGENET1K_V1: (224, 232),
    models.Swin_S_Weights.IMAGENET1K_V1: (224, 246),
    models.Swin_B_Weights.IMAGENET1K_V1: (224, 238),
    models.Swin_V2_T_Weights.IMAGENET1K_V1: (256, 260),
    models.Swin_V2_S_Weights.IMAGENET1K_V1: (256, 260),
    models.Swin_V2_B_Weights.IMAGENET1K_V1: (256, 272),
}


def name_of(entry):
    model = type(entry).__name__.removesuffix("_Weights").lower()
    return f"torchvision/{model}.{entry.name}"


@pytest.mark.parametrize("entry", TORCHVISION, ids=name_of)
def test_images_are_prepared_as_torchvision_does(publish, entry):
    publish(entry, {"a": torch.zeros(2)})
    preprocessing = read_weights(name_of(entry)).preprocessing
    sizes = preprocessing.img_size, preprocessing.resize
    assert sizes == TORCHVISION[entry]
    agree(preprocessing, entry.transforms())


def test_every_classifier_of_torchvision_has_preprocessing(publish):
    for name in models.list_models(models):
        for entry in models.get_model_weights(name):
            publish(entry, {"a": torch.zeros(2)})
            weights = read_weights(f"torchvision/{name}.{entry.name}")
            preset = entry.transforms()
            assert [weights.preprocessing.img_size] == preset.crop_size
            assert [weights.preprocessing.resize] == preset.resize_size


# Published weights of timm.


def test_without_timm_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not there
    with pytest.raises(WeightsError, match="pip install timm"):
        read_weights("timm/vit_tiny_patch16_224")


OFFLINE = """
import sys, torch
from vit_lessons.weights import WeightsError, read_weights
torch.set_num_threads(1)
try:
    read_weights("timm/vit_small_patch16_224")
except WeightsError as error:
    print(error)
weights = read_weights("timm/test_vit.r160_in1k")
print(weights.preprocessing.mean, weights.preprocessing.img_size)
torch.save(weights.state_dict, sys.argv[1])
"""


def test_timm_gives_the_weights_of_its_cache_or_an_error(tmp_path):
    """A cache like that after a download. Without a network timm tries for
    about a minute, so the other program is told that there is none."""
    state = timm.create_model("test_vit").state_dict()
    hub = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0" * 40)
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(state, snapshot / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "a.pt")],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "vit_small_patch16_224 could not be downloaded" in done.stdout
    assert "Connect and try again" in done.stdout
    assert "(0.5, 0.5, 0.5) 160" in done.stdout
    assert same(torch.load(tmp_path / "a.pt"), state)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "",
        "[]",
        "null",
        '{"pretrained_cfg": []}',
        {"pretrained_cfg": COMPLETE | {"input_size": [32, 32]}},
        {"pretrained_cfg": COMPLETE | {"input_size": 32}},
        {"pretrained_cfg": COMPLETE | {"crop_pct": "0.9"}},
        {"pretrained_cfg": COMPLETE | {"mean": 0.5}},
        {"pretrained_cfg": COMPLETE | {"mean": ["a", "b", "c"]}},
        {"pretrained_cfg": COMPLETE | {"interpolation": "random"}},
    ],
    ids=range(11),
)
def test_metadata_that_are_broken_are_named(tmp_path, config):
    with pytest.raises(ValueError, match=r"config\.json"):
        preprocessing_of(config, tmp_path)


def test_a_folder_whose_metadata_are_null_has_none(tmp_path):
    assert preprocessing_of({"pretrained_cfg": None}, tmp_path) is None
