"""The fit side of `recipe_vs_fit.py`: the common recipe in a process of its own, one line of JSON
for each column.

Seconds begin at the first line of this program, as those of `train.py` do, and end after the test
images were evaluated. The head is trained once: with a frozen backbone BatchNorm uses its moving
statistics whether `held` or not. Each column then builds its model with that head and pays for what
came before it (import, building, head) and its own fine-tuning.
"""

import time

STARTED = time.perf_counter()

import json
import os

from tl_research import quiet

quiet.import_tensorflow()

import keras
import measuring
import program

from tl_research.settings import setting

COLUMNS = ("fit", "fit held")


class Settings(program.Training, program.Network):
    """The flags of this program; `recipe_vs_fit.py` gives them."""

    folders: str | None = setting(
        None, "directory with train, validation and test, a folder per class in each; must be given"
    )
    columns: tuple[str, ...] = setting(COLUMNS, "which to measure")
    epochs: str = setting("8,10", "of the head and of fine-tuning; at least 1")
    seed: int = setting(0, "decides initial weights, order, augmentation and dropout")


def measure(settings):
    """Trains, and yields a dict for each column when it is done."""
    config = measuring.make_config(settings, *settings.network)
    train, validation, test = (
        measuring.read_folder(f"{settings.folders}/{side}", config, shuffle=side == "train")
        for side in ("train", "validation", "test")
    )
    num_classes = len(os.listdir(f"{settings.folders}/train"))
    model, _ = measuring.fit_model(config, "head", num_classes)
    head, first = _train(model, train, validation, config.epochs[0], STARTED)
    dense = model.layers[-1].get_weights()
    shared = time.perf_counter() - STARTED
    for column in settings.columns:
        keras.backend.clear_session()
        held = column == "fit held"
        model, _ = measuring.fit_model(config, "finetune", num_classes, held=held)
        model.layers[-1].set_weights(dense)
        before, start = model.get_weights(), time.perf_counter()
        finetune, more = _train(model, train, validation, config.epochs[1], start - shared)
        phases, selected = {"head": head, "finetune": finetune}, "finetune"
        if finetune["val_loss"] >= head["val_loss"]:  # as ours: the best of both phases
            selected = "head"
            model.set_weights(before)
        loss, accuracy = model.evaluate(test, verbose=0)
        yield {
            "column": column,
            "seconds": shared + time.perf_counter() - start,
            **phases[selected],
            "selected_phase": selected,
            "phases": phases,
            "history": first + more,
            "test_loss": loss,
            "test_accuracy": accuracy,
        }


def _train(model, train, validation, epochs, started):
    """Trains all epochs and restores the weights of the best.

    Returns:
        (its validation metrics, those of each epoch with the seconds since `started`).
    """
    # never stops: it restores
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    rows = []

    def note(epoch, logs):
        metrics = {name: logs[name] for name in ("val_loss", "val_accuracy")}
        rows.append({"seconds": time.perf_counter() - started, **metrics})

    callbacks = [best, keras.callbacks.LambdaCallback(on_epoch_end=note)]
    model.fit(train, validation_data=validation, epochs=epochs, verbose=0, callbacks=callbacks)
    _, *metrics = min(rows, key=lambda row: row["val_loss"]).items()
    return dict(metrics), rows


def report(settings):
    for row in measure(settings):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    program.main(Settings, report)
