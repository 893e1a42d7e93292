"""What happens to BatchNorm when fine-tuning begins: `model.fit` with the line everybody copies,
our loop, and `fit` held.

    python benchmarks/batchnorm_trap.py --dataset=tf_flowers --data_dir=DIR
    --figure=docs/images/batchnorm_trap.png

prints a table and what follows from it, in about 20 minutes on 2 CPU cores. The head is trained
once, by our loop, and its best weights are where all three columns begin: same images, rates and
augmentation factors, a new Adam each.
"""

import dataclasses
import json
import math
import os
import tempfile

from tl_research import quiet

quiet.import_tensorflow()

import copied_recipe
import keras
import matplotlib

matplotlib.use("Agg")  # no screen is needed, or looked for
import matplotlib.pyplot as plt
import numpy as np

from tl_research import cli
from tl_research.config import DATASETS, Config
from tl_research.data import dataset
from tl_research.errors import UserError
from tl_research.extension import Extension
from tl_research.files import write_atomically
from tl_research.models import backbones
from tl_research.models.classifier import Classifier
from tl_research.reporting import plan_text, results
from tl_research.reporting.recorder import Recorder
from tl_research.reporting.summaries import Summaries
from tl_research.run import environment
from tl_research.run.directory import RunDirectory
from tl_research.settings import setting
from tl_research.signals import Signals
from tl_research.training import loop
from tl_research.training.plan import Plan
from tl_research.training.resume import Resume
from tl_research.training.state import TrainState

TRAP, LOOP, HELD = "fit, base_model(x, training=False)", "our loop", "fit, InferenceBackbone"
_STYLES = {TRAP: ("#D55E00", "o-"), LOOP: ("#0072B2", "o-"), HELD: ("#009E73", "s--")}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The flags of this benchmark; what is not here is as in `Config`."""

    dataset: str = setting(
        "tf_flowers", "where images come from; directory needs --data_dir", choices=DATASETS
    )
    data_dir: str | None = setting(
        None,
        "one folder per class; with a named data set, a copy used instead of downloading",
        path="absolute",
    )
    backbone: str = setting("EfficientNetLite0", "a name from tl_research/models/backbones.py")
    image_size: int = setting(224, "height and width in pixels that images are resized to")
    batch_size: int = setting(32, "images a step")
    seed: int = setting(0, "decides the head's initial weights, order, augmentation and dropout")
    head_epochs: int = setting(8, "epochs with the backbone frozen, Adam 1e-3; at least 1")
    finetune_epochs: int = setting(
        4, "epochs with the top 30 % of its layers open, Adam 1e-5; at least 1"
    )
    output_json: str | None = setting(None, "file for all numbers; None writes none")
    figure: str | None = setting(None, "PNG file for the figure; None draws none")

    def config(self, workdir, phase, epochs, unfreeze, learning_rate):
        """Returns the `Config` of one phase of our loop, all epochs of which are run."""
        if epochs < 1:
            raise UserError(f"--{phase}_epochs={epochs}; expected at least 1; correct it")
        same = {
            name: value for name, value in vars(self).items() if name in Config.__dataclass_fields__
        }
        return Config(
            **same,
            workdir=os.path.join(workdir, phase),
            precision="float32",
            phases=phase,
            epochs=epochs,
            unfreeze=unfreeze,
            learning_rate=learning_rate,
            lr_schedule="constant",
            warmup=0,
            label_smoothing=0,
            patience=0,
            augment_views=0,
        )


def compare(settings):
    """Trains the head once and fine-tunes it in three ways.

    Returns:
        dict: `settings`; `validation_images`; `head`: a row per epoch; `start`: the row of its best
        weights; and `columns`: {name: {"start" (as evaluated by that column), "rows",
        "statistics_changed", "statistics_total", "largest_relative_change"}}. A row has epoch,
        train_accuracy, val_accuracy and val_loss.
    """
    with tempfile.TemporaryDirectory() as workdir, Signals() as signals:
        head_config = settings.config(workdir, "head", settings.head_epochs, "0%", 1e-3)
        config = settings.config(workdir, "finetune", settings.finetune_epochs, "30%", 1e-5)
        backbones.get_spec(config.backbone)  # a misspelt name should not wait for the data
        _, xla = environment.resolve_device(config, {})
        with RunDirectory(head_config) as directory:
            data = dataset.load(head_config, directory)
            classifier = Classifier(
                config.backbone,
                config.weights,
                config.image_size,
                len(data.classes),
                augmentation=config.augmentation,
                dropout=config.dropout,
                seed=config.seed,
            )
            before = _statistics(classifier.backbone)
            head, start, head_state = _run_loop(
                head_config, classifier, data, directory, xla, signals
            )
        head_weights = classifier.head.get_weights()
        with RunDirectory(config) as directory:
            rows, _, _ = _run_loop(config, classifier, data, directory, xla, signals, head_state)
    columns = {
        TRAP: None,
        LOOP: {"start": start, "rows": rows, **_moved(before, classifier.backbone)},
    }
    for name in (TRAP, HELD):
        print(f"{name}:", flush=True)
        backbone, evaluated, rows = _run_fit(config, data, head_weights, held=name == HELD)
        columns[name] = {
            "start": {**start, **evaluated},
            **_moved(before, backbone),
            "rows": [{"epoch": len(head) + 1 + i, **row} for i, row in enumerate(rows)],
        }
    return {
        "settings": vars(settings),
        "validation_images": len(data.validation),
        "head": head,
        "start": start,
        "columns": columns,
    }


def _run_loop(config, classifier, data, directory, xla, signals, earlier=None):
    """Runs one phase of the project's own loop.

    Returns (a row per epoch, the row of the best weights, `TrainState`).
    """
    plan, state = Plan(config, Extension(), classifier, data, directory, xla=xla), TrainState()
    # counts on, as from phase to phase: the order, augmentation and dropout of the first epochs do
    # not come again
    if earlier:
        state.position.epoch = earlier.position.epoch
        state.position.global_step = earlier.position.global_step
    print(plan_text.describe_cache(plan.cache.plan), flush=True)
    summaries = Summaries(directory.path, None)
    recorder = Recorder(config, plan.objective.answer, data, directory, summaries)
    loop.fit(plan, state, resume=Resume(plan, directory, signals), observers=[recorder])
    rows = [
        {name: row[name] for name in ("epoch", "train_accuracy", "val_accuracy", "val_loss")}
        for row in state.past.history
    ]
    selected = {name: state.past.selected[name] for name in ("epoch", "val_accuracy", "val_loss")}
    (best,) = ({**row, **selected} for row in rows if row["epoch"] == selected["epoch"])
    return rows, best, state


def _run_fit(config, data, head_weights, held):
    """Fine-tunes as the common recipe does.

    Returns (the backbone, validation before, a row per epoch).
    """
    model, base_model = copied_recipe.build_model(config, len(data.classes), held=held)
    # in place of the recipe's first `fit`, which trains the dense layer alone
    model.layers[-1].set_weights(head_weights)
    (phase,) = config.phase_plan
    copied_recipe.open_top(base_model)
    copied_recipe.compile_model(model, phase.learning_rate)
    train, validation = (
        (side.images(range(len(side))), side.labels) for side in (data.train, data.validation)
    )
    loss, accuracy = model.evaluate(*validation, batch_size=config.batch_size, verbose=0)
    history = model.fit(
        *train,
        batch_size=config.batch_size,
        epochs=phase.epochs,
        validation_data=validation,
        verbose=2,
    ).history
    columns = history["accuracy"], history["val_accuracy"], history["val_loss"]
    rows = [dict(zip(("train_accuracy", "val_accuracy", "val_loss"), row)) for row in zip(*columns)]
    return base_model, {"val_accuracy": accuracy, "val_loss": loss}, rows


def _statistics(backbone):
    """Returns the moving means and variances of all BatchNorm layers, a list of arrays."""
    return [
        variable.numpy()
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def _moved(before, backbone):
    """Compares the statistics with those of before: exactly for the count, by Euclidean norm for
    the size.
    """
    pairs = list(zip(before, _statistics(backbone), strict=True))
    return {
        "statistics_changed": sum(a.tobytes() != b.tobytes() for a, b in pairs),
        "statistics_total": len(pairs),
        "largest_relative_change": max(
            (float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs), default=0.0
        ),
    }


def table(result):
    """Returns the comparison as a Markdown table."""

    def cells(row):
        return f"{row['train_accuracy']:.3f} / {row['val_accuracy']:.3f} / {row['val_loss']:.3f}"

    columns = result["columns"].values()
    lines = [
        [
            "epoch: training accuracy / validation accuracy / validation loss",
            f"`{TRAP}`",
            LOOP,
            f"`{HELD}`",
        ],
        [
            f"{result['start']['epoch']}, head: where all begin",
            *(cells(column["start"]) for column in columns),
        ],
        *(
            [f"{rows[0]['epoch']}, fine-tuning", *map(cells, rows)]
            for rows in zip(*(c["rows"] for c in columns))
        ),
        [
            "moving statistics changed",
            *(f"{c['statistics_changed']} of {c['statistics_total']}" for c in columns),
        ],
        [
            "largest relative change of one",
            *(f"{c['largest_relative_change']:.3g}" for c in columns),
        ],
    ]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def conclusion(result):
    """Returns one paragraph that says what the numbers show, whichever way they turned out."""
    columns, start, count = result["columns"], result["start"], result["validation_images"]
    share = start["val_accuracy"]
    # as in the loop's own warning of a fall
    noise = 2 * math.sqrt(max(share * (1 - share), 1 / count) / count)
    sentences = []
    for name, column in columns.items():
        first, last = column["rows"][0], column["rows"][-1]
        in_training = first["train_accuracy"] - start["train_accuracy"]
        sentences.append(
            f"{name}: {column['statistics_changed']} of {column['statistics_total']} moving "
            "statistics change; in the first epoch after the switch training accuracy changes by "
            f"{100 * in_training:+.1f} points, validation accuracy by "
            f"{100 * (first['val_accuracy'] - share):+.1f} (two standard errors are "
            f"{100 * noise:.1f}) and validation loss by "
            f"{first['val_loss'] - start['val_loss']:+.3f}; at epoch {last['epoch']} validation "
            f"stands {100 * (last['val_accuracy'] - share):+.1f} points and "
            f"{last['val_loss'] - start['val_loss']:+.3f} in loss from where it began."
        )
    moved = [name for name, column in columns.items() if column["statistics_changed"]]
    if moved != [TRAP]:
        return " ".join(
            [*sentences, f"Statistics moved in: {', '.join(moved) or 'none of the three'}."]
        )
    trap, held = columns[TRAP]["rows"][-1], columns[HELD]["rows"][-1]
    return " ".join(
        [
            *sentences,
            (
                "So training=False in a functional graph does not hold the statistics under fit. "
                "The same fit with a layer that passes it in its own call holds all of them, and "
                f"ends {100 * (held['val_accuracy'] - trap['val_accuracy']):+.1f} points in "
                f"validation accuracy and {held['val_loss'] - trap['val_loss']:+.3f} in loss from "
                "where the copied line ends."
            ),
        ]
    )


def save_figure(path, result):
    """Draws validation accuracy and loss over the switch for the three columns."""
    head, start = result["head"], {**result["start"], "epoch": len(result["head"])}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, key in zip(axes, ("val_accuracy", "val_loss")):
        for name, column in result["columns"].items():
            rows = [start, *column["rows"]]
            label = (
                f"{name}: {column['statistics_changed']} of {column['statistics_total']} BatchNorm "
                "statistics moved"
            )
            color, line = _STYLES[name]
            axis.plot(
                [row["epoch"] for row in rows],
                [row[key] for row in rows],
                line,
                color=color,
                markersize=4,
                label=label,
            )
        axis.plot(
            [row["epoch"] for row in head],
            [row[key] for row in head],
            "o-",
            color="0.35",
            markersize=4,
            label="head phase, backbone frozen: the same for all",
        )
        axis.axvline(start["epoch"], color="0.6", linestyle=":", linewidth=1, zorder=0)
        axis.annotate(
            "fine-tuning begins ",
            (start["epoch"], 1),
            xycoords=("data", "axes fraction"),
            color="0.35",
            horizontalalignment="right",
            verticalalignment="top",
        )
        axis.set(
            xlabel="epoch",
            title={"val_accuracy": "Validation accuracy", "val_loss": "Validation loss"}[key],
        )
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.margins(y=0.12)
        axis.grid(axis="y", color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main():
    settings = cli.config_from_flags(Settings)
    for path in filter(None, (settings.output_json, settings.figure)):
        # now, rather than fail after the training
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    result = compare(settings)
    print("\n" + table(result) + "\n\n" + conclusion(result), flush=True)
    if settings.output_json:
        write_atomically(
            settings.output_json, json.dumps(results.without_nan(result), indent=1) + "\n"
        )
    if settings.figure:
        save_figure(settings.figure, result)


if __name__ == "__main__":
    cli.define_flags(Settings)
    cli.run(main)
