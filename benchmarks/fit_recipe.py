"""The fit side of `recipe_vs_fit.py`: the common recipe in a process of its own, one line of JSON
for each column.

Seconds begin at the first line of this program, as those of `train.py` do, and end after the test
images were evaluated. The head is trained once: with a frozen backbone BatchNorm uses its moving
statistics whether `held` or not. Each column then builds its model with that head and pays for what
came before it (import, building, head) and its own fine-tuning.
"""

import time

STARTED = time.perf_counter()

import dataclasses
import json
import os

from tl_research import quiet

quiet.import_tensorflow()

import copied_recipe
import keras
import measuring

from tl_research import cli
from tl_research.settings import setting

COLUMNS = ("fit", "fit held")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this program; `recipe_vs_fit.py` gives them."""

    folders: str | None = setting(
        None, "directory with train, validation and test, a folder per class in each; must be given"
    )
    backbone: str = setting("EfficientNetLite0", "NAME@SIZE")
    columns: str = setting(",".join(COLUMNS), "which to measure")
    weights: str = setting("none", "imagenet or none; EfficientNetLite has its own")
    epochs: str = setting("8,10", "of the head and of fine-tuning; at least 1")
    batch_size: int = setting(32, "images a step")
    seed: int = setting(0, "decides initial weights, order, augmentation and dropout")


def measure(settings):
    """Trains, and yields a dict for each column when it is done."""
    ((name, size),) = measuring.parse_backbones(settings.backbone)
    config = measuring.make_config(settings, name, size)
    sides = {
        side: measuring.read_folder(
            os.path.join(settings.folders, side), config, shuffle=side == "train"
        )
        for side in ("train", "validation", "test")
    }
    num_classes = len(os.listdir(os.path.join(settings.folders, "train")))
    model = measuring.fit_model(config, "head", num_classes)
    head, first = _train(model, sides, config.epochs[0], STARTED)
    dense = model.layers[-1].get_weights()
    shared = time.perf_counter() - STARTED
    for column in settings.columns.split(","):
        keras.backend.clear_session()
        model, base_model = copied_recipe.build_model(
            config, num_classes, held=column == "fit held"
        )
        model.layers[-1].set_weights(dense)
        before = model.get_weights()
        start = time.perf_counter()
        copied_recipe.open_top(base_model)
        copied_recipe.compile_model(model, measuring.PHASES["finetune"][1])
        finetune, more = _train(model, sides, config.epochs[1], start - shared)
        selected = finetune
        if finetune["val_loss"] >= head["val_loss"]:  # as ours: the best of both phases
            selected = head
            model.set_weights(before)
        loss, accuracy = model.evaluate(sides["test"], verbose=0)
        yield {
            "column": column,
            "seconds": shared + time.perf_counter() - start,
            **selected,
            "selected_phase": "head" if selected is head else "finetune",
            "phases": {"head": head, "finetune": finetune},
            "history": first + more,
            "test_loss": loss,
            "test_accuracy": accuracy,
        }


def _train(model, sides, epochs, started):
    """Trains all epochs and restores the weights of the best.

    Returns:
        (its validation metrics, those of each epoch with the seconds since `started`).
    """
    # never stops: it restores
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    times = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: times.append(time.perf_counter() - started)
    )
    history = model.fit(
        sides["train"],
        validation_data=sides["validation"],
        epochs=epochs,
        verbose=0,
        callbacks=[best, clock],
    ).history
    rows = [
        {"seconds": seconds, "val_loss": loss, "val_accuracy": accuracy}
        for seconds, loss, accuracy in zip(times, history["val_loss"], history["val_accuracy"])
    ]
    best = min(rows, key=lambda row: row["val_loss"])
    return {name: best[name] for name in ("val_loss", "val_accuracy")}, rows


def main():
    for row in measure(cli.config_from_flags(Settings)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
