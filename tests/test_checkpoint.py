"""Checkpoints: whole or not at all, exact, and harmless to read."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vit_lessons import History, VisionTransformer, fit
from vit_lessons.checkpoint import load_checkpoint, save_checkpoint
from vit_lessons.data import ImageDataset

SETTINGS = {"seed": 0, "learning_rate": 1e-3}

# Everything that is random in training: order, augmentation, MixUp, dropout,
# skipped branches. Batch norm keeps state that is no parameter.
TRAIN = '''
import os, signal, sys, time
from pathlib import Path
from random import Random

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vit_lessons import VisionTransformer, fit
from vit_lessons.data import ImageDataset

torch.set_num_threads(1)


def train(checkpoint, num_workers):
    torch.manual_seed(7)
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 4
    change = v2.Compose([v2.RandomAffine(10), v2.RandomErasing(p=0.5)])
    loader = DataLoader(
        ImageDataset(images, labels, change),
        batch_size=8,
        shuffle=True,
        num_workers=num_workers,
    )
    vit = VisionTransformer(
        8, 4, in_chans=1, num_classes=4, embed_dim=8, depth=2, num_heads=2,
        dropout=0.1, drop_path=0.3,
    )
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), vit)
    history = fit(
        model,
        loader,
        DataLoader(ImageDataset(images, labels), batch_size=8),
        epochs=6,
        mix=v2.MixUp(num_classes=4),
        checkpoint=checkpoint,
    )
    result = {"model": model.state_dict(), "history": vars(history)}
    torch.save(result, f"{checkpoint}.result")


def start(checkpoint, num_workers):
    """Train in a process of its own, which has its own group."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        train(checkpoint, num_workers)
        os._exit(0)
    os.setpgid(child, child)  # whoever comes first
    return child


def kill(child):
    """Is it killed before it ended?"""
    os.killpg(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def finish(child):
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the training failed")


def wait_for(path, child):
    """Until the file is there or the process ended."""
    while not path.exists():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return


def main(num_workers):
    begin = time.monotonic()
    finish(start("whole.pt", num_workers))
    seconds = time.monotonic() - begin
    kills = 0

    # After the first checkpoint, so in a later epoch.
    child = start("later.pt", num_workers)
    wait_for(Path("later.pt"), child)
    time.sleep(seconds / 20)
    kills += kill(child)
    finish(start("later.pt", num_workers))

    # While a checkpoint is written, again and again.
    for _ in range(4):
        Path("writing.pt.part").unlink(missing_ok=True)
        child = start("writing.pt", num_workers)
        wait_for(Path("writing.pt.part"), child)
        kills += kill(child)
    finish(start("writing.pt", num_workers))

    # At any moment, again and again.
    random = Random(0)
    for _ in range(6):
        child = start("random.pt", num_workers)
        time.sleep(random.uniform(0, seconds / 2))
        kills += kill(child)
    finish(start("random.pt", num_workers))
    print(kills)


main(int(sys.argv[1]))
'''


def same(one, other):
    """Is it the same, down to the last bit?"""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_is_killed_goes_on_with_the_same_bits(tmp_path, num_workers):
    script = tmp_path / "train.py"
    script.write_text(TRAIN, "utf-8")
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(script), str(num_workers)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 3, "too few were killed before they ended"
    whole = load(tmp_path / "whole.pt.result")
    assert len(whole["history"]["train_loss"]) == 6
    for name in ("later.pt", "writing.pt", "random.pt"):
        assert same(load(tmp_path / f"{name}.result"), whole)
        assert same(load(tmp_path / name), load(tmp_path / "whole.pt"))
    assert not list(tmp_path.glob("*.part"))


def small_run(checkpoint, *, change=None, mix=None):
    """Three epochs of two batches, with dropout."""
    torch.manual_seed(7)
    images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 2
    model = VisionTransformer(
        4,
        2,
        in_chans=1,
        num_classes=2,
        embed_dim=8,
        depth=2,
        num_heads=2,
        dropout=0.1,
        drop_path=0.1,
    )
    history = fit(
        model,
        DataLoader(ImageDataset(images, labels, change), 8, shuffle=True),
        DataLoader(ImageDataset(images, labels), 12),
        epochs=3,
        mix=mix,
        checkpoint=checkpoint,
    )
    return model.state_dict(), history


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5, 6])
def test_a_run_that_ctrl_c_ends_goes_on_with_the_same_bits(tmp_path, batches):
    left = batches

    def interrupt(images, labels):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return v2.MixUp(num_classes=2)(images, labels)

    expected = small_run(None, mix=v2.MixUp(num_classes=2))
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "a.pt", mix=interrupt)
    assert same(small_run(tmp_path / "a.pt", mix=interrupt), expected)


def test_the_rest_of_a_killed_write_does_no_harm(tmp_path):
    path = tmp_path / "a.pt"
    (tmp_path / "a.pt.part").write_bytes(b"half of a file")
    expected = small_run(None)
    assert same(small_run(path), expected)
    (tmp_path / "a.pt.part").write_bytes(b"half of a file")
    assert same(small_run(path), expected)


# A file is written as a whole or not at all.


def parts_with(value):
    """A model, an optimizer after a step, and a history."""
    model = nn.Linear(2, 3)
    nn.init.constant_(model.weight, value)
    nn.init.constant_(model.bias, value)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    history = History()
    history.append(value, value, value)
    return {"model": model, "optimizer": optimizer, "history": history}


def states(parts):
    return copy.deepcopy(
        {name: part.state_dict() for name, part in parts.items()}
    )


def test_a_checkpoint_brings_every_part_back(tmp_path):
    parts, others = parts_with(1.0), parts_with(2.0)
    save_checkpoint(tmp_path / "a.pt", parts, SETTINGS)
    assert not same(states(others), states(parts))
    load_checkpoint(tmp_path / "a.pt", others, SETTINGS)
    assert same(states(others), states(parts))


def test_only_the_checkpoint_is_left_in_the_folder(tmp_path):
    save_checkpoint(tmp_path / "a.pt", parts_with(1.0), SETTINGS)
    save_checkpoint(str(tmp_path / "a.pt"), parts_with(2.0), SETTINGS)
    assert os.listdir(tmp_path) == ["a.pt"]
    parts = parts_with(1.0)
    load_checkpoint(tmp_path / "a.pt", parts, SETTINGS)
    assert same(states(parts), states(parts_with(2.0)))


class Unpicklable:
    def state_dict(self):
        return {"file": lambda: None}


def test_a_state_that_cannot_be_written_leaves_the_file_before_it(tmp_path):
    save_checkpoint(tmp_path / "a.pt", parts_with(1.0), SETTINGS)
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(tmp_path / "a.pt", {"a": Unpicklable()}, SETTINGS)
    assert (tmp_path / "a.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_leaves_the_file_before_it(tmp_path):
    save_checkpoint(tmp_path / "a.pt", parts_with(1.0), SETTINGS)
    before = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "a.pt", parts_with(2.0), SETTINGS)
    assert (tmp_path / "a.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_checkpoint(tmp_path / "nowhere" / "a.pt", {}, SETTINGS)


# A file that is no checkpoint of this run changes nothing.


def refused(path, message, *, parts=None, settings=SETTINGS):
    """A ValueError with this message, and the parts are as they were."""
    parts = parts or parts_with(1.0)
    before = states(parts)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, parts, settings)
    assert same(states(parts), before)


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_a_checkpoint_cannot_run_code(tmp_path):
    path, victim = tmp_path / "a.pt", tmp_path / "victim"
    torch.save({"model": Evil(victim), "settings": {}}, path)
    refused(path, r"cannot be read \(UnpicklingError\); delete it to begin")
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists()  # so the code works


def test_a_plain_pickle_cannot_run_code(tmp_path):
    path, victim = tmp_path / "a.pt", tmp_path / "victim"
    path.write_bytes(pickle.dumps(Evil(victim), protocol=2))
    refused(path, r"cannot be read \(UnpicklingError\); delete it to begin")
    assert not victim.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_part_of_a_checkpoint_is_refused(tmp_path, share):
    save_checkpoint(tmp_path / "a.pt", parts_with(2.0), SETTINGS)
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "a.pt", r"file of save_checkpoint.*delete it to begin")


@pytest.mark.parametrize("state", [3.0, [1], {"model": 1}, torch.zeros(2)])
def test_a_file_with_something_else_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"file of save_checkpoint.*delete it to begin")


@pytest.mark.parametrize(
    "settings",
    [{}, {**SETTINGS, "seed": 1}, {**SETTINGS, "more": 1}, {"seed": 0}],
)
def test_a_checkpoint_of_a_run_with_other_settings_is_refused(
    tmp_path, settings
):
    save_checkpoint(tmp_path / "a.pt", parts_with(2.0), settings)
    refused(tmp_path / "a.pt", r"take the same settings or another file")


def test_a_checkpoint_with_other_parts_is_refused(tmp_path):
    parts = parts_with(2.0)
    del parts["history"]
    save_checkpoint(tmp_path / "a.pt", parts, SETTINGS)
    refused(tmp_path / "a.pt", "be model, optimizer as in .*a.pt, got model")


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(2, 4),
        nn.Linear(3, 3),
        nn.Linear(2, 3, bias=False),
        nn.Sequential(nn.Linear(2, 3)),
        nn.BatchNorm1d(3),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other):
    save_checkpoint(
        tmp_path / "a.pt", {**parts_with(2.0), "model": other}, SETTINGS
    )
    refused(tmp_path / "a.pt", "model must fit .*a.pt.*or another file")


def test_a_checkpoint_of_another_optimizer_changes_nothing(tmp_path):
    frozen = parts_with(2.0)
    frozen["optimizer"] = SGD([frozen["model"].weight], lr=0.1)
    save_checkpoint(tmp_path / "a.pt", frozen, SETTINGS)
    refused(tmp_path / "a.pt", "optimizer must fit .*a.pt.*or another file")
