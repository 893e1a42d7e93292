"""What happens to BatchNorm when fine-tuning begins: `model.fit` with the line everybody copies,
our loop, and `fit` held.

    python benchmarks/batchnorm_trap.py --dataset=tf_flowers --data_dir=DIR
    --figure=docs/images/batchnorm_trap.png

prints a table and what follows from it, in about 20 minutes on 2 CPU cores. The head is trained
once, by our loop, and its best weights are where all three columns begin: same images, rates and
augmentation factors, a new Adam each.
"""

import math
import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import copied_recipe
import matplotlib.figure
import measuring
import numpy as np
import program

from tl_research import experiment
from tl_research.reporting.pictures import markdown_table
from tl_research.settings import setting
from tl_research.training import loop
from tl_research.training.events import PhaseEnded

TRAP, LOOP, HELD = "fit, base_model(x, training=False)", "our loop", "fit, InferenceBackbone"
_STYLES = {TRAP: ("#D55E00", "o-"), LOOP: ("#0072B2", "o-"), HELD: ("#009E73", "s--")}
_METRICS = ("train_accuracy", "val_accuracy", "val_loss")


class Settings(program.Photographs):
    """The flags of this benchmark; what is not here is as in `Config`."""

    backbone: str = setting("EfficientNetLite0", "a name from tl_research/models/backbones.py")
    weights: str = setting("imagenet", "imagenet or none")
    image_size: int = setting(224, "height and width in pixels that images are resized to")
    batch_size: int = setting(32, "images a step")
    seed: int = setting(0, "decides the head's initial weights, order, augmentation and dropout")
    head_epochs: int = setting(8, "epochs with the backbone frozen, Adam 1e-3", low=1)
    finetune_epochs: int = setting(
        4, "epochs with the top 30 % of its layers open, Adam 1e-5", low=1
    )
    figure: str | None = setting(None, "PNG file for the figure; None draws none")


def compare(settings):
    """Trains the head once and fine-tunes it in three ways.

    Returns:
        dict: `validation_images`; `head`: a row per epoch; `start`: the row of its best weights;
        and `columns`: {name: {"start" (as evaluated by that column), "rows", "statistics_changed",
        "statistics_total", "largest_relative_change"}}. A row has epoch, train_accuracy,
        val_accuracy and val_loss.
    """
    with tempfile.TemporaryDirectory() as place:
        config = measuring.make_config(
            settings,
            settings.backbone,
            settings.image_size,
            workdir=f"{place}/run",
            epochs=(settings.head_epochs, settings.finetune_epochs),
            learning_rate=(1e-3, 1e-5),
            lr_schedule="constant",
            warmup=0,
            label_smoothing=0,
            patience=0,
            augment_views=0,
        )
        with experiment.opened(config) as opened:
            ready = experiment.prepare(opened, time.perf_counter())
            before, ended = _run_loop(ready)
    (head_result, head_weights, _), (_, _, moved) = ended
    rows = [{name: row[name] for name in ("epoch", *_METRICS)} for row in ready.state.past.history]
    head, rows = rows[: settings.head_epochs], rows[settings.head_epochs :]
    start = {**head[head_result["best_epoch"] - 1]}
    start |= {name: head_result[name] for name in ("val_accuracy", "val_loss")}
    columns = {TRAP: None, LOOP: {"start": start, "rows": rows, **moved}}
    for name in (TRAP, HELD):
        print(f"{name}:", flush=True)
        backbone, evaluated, rows = _run_fit(config, ready.data, head_weights, held=name == HELD)
        columns[name] = {
            "start": {**start, **evaluated},
            **_moved(before, backbone),
            "rows": [{"epoch": len(head) + i, **row} for i, row in enumerate(rows, 1)],
        }
    validation = len(ready.data.validation)
    return {"validation_images": validation, "head": head, "start": start, "columns": columns}


def _run_loop(ready):
    """Trains a run by the project's own loop.

    Returns (its statistics before, [(result, weights of the head, how statistics moved)] of each
    phase, with its best weights).
    """
    classifier, ended = ready.plan.classifier, []
    before = _statistics(classifier.backbone)

    def observe(event):
        if isinstance(event, PhaseEnded):
            moved = _moved(before, classifier.backbone)
            ended.append((event.result, classifier.head.get_weights(), moved))
            ready.state.optimizer = None  # a new Adam each

    observers = [*ready.observers, observe]
    loop.fit(ready.plan, ready.state, resume=ready.resume, observers=observers)
    return before, ended


def _run_fit(config, data, head_weights, held):
    """Fine-tunes as the common recipe does.

    Returns (the backbone, validation before, a row per epoch).
    """
    model, base_model = copied_recipe.build_model(config, len(data.classes), held=held)
    # in place of the recipe's first `fit`, which trains the dense layer alone
    model.layers[-1].set_weights(head_weights)
    phase = config.phase_plan[-1]
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
    columns = (history[name.removeprefix("train_")] for name in _METRICS)
    rows = [dict(zip(_METRICS, row)) for row in zip(*columns)]
    return base_model, {"val_accuracy": accuracy, "val_loss": loss}, rows


def _statistics(backbone):
    """Returns the moving means and variances of all BatchNorm layers, a list of arrays."""
    return [
        variable.numpy()
        for layer in measuring.batchnorms(backbone)
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
    cells = "{train_accuracy:.3f} / {val_accuracy:.3f} / {val_loss:.3f}".format_map
    columns = result["columns"].values()
    lines = [
        [
            f"{result['start']['epoch']}, head: where all begin",
            *(cells(c["start"]) for c in columns),
        ],
        *(
            [f"{rows[0]['epoch']}, fine-tuning", *map(cells, rows)]
            for rows in zip(*(c["rows"] for c in columns))
        ),
    ]
    for name, form in {
        "moving statistics changed": "{statistics_changed} of {statistics_total}",
        "largest relative change of one": "{largest_relative_change:.3g}",
    }.items():
        lines.append([name, *map(form.format_map, columns)])
    first = "epoch: training accuracy / validation accuracy / validation loss"
    return markdown_table([first, f"`{TRAP}`", LOOP, f"`{HELD}`"], lines)


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
    trap, held = columns[TRAP]["rows"][-1], columns[HELD]["rows"][-1]
    end = f"Statistics moved in: {', '.join(moved) or 'none of the three'}."
    if moved == [TRAP]:
        end = (
            "So training=False in a functional graph does not hold the statistics under fit. "
            "The same fit with a layer that passes it in its own call holds all of them, and "
            f"ends {100 * (held['val_accuracy'] - trap['val_accuracy']):+.1f} points in "
            f"validation accuracy and {held['val_loss'] - trap['val_loss']:+.3f} in loss from "
            "where the copied line ends."
        )
    return " ".join([*sentences, end])


def save_figure(path, result):
    """Draws validation accuracy and loss over the switch for the three columns."""
    head, start = result["head"], {**result["start"], "epoch": len(result["head"])}
    lines = {}
    for name, column in result["columns"].items():
        moved = "{statistics_changed} of {statistics_total} BatchNorm statistics moved"
        label = f"{name}: {moved.format_map(column)}"
        lines[label] = (*_STYLES[name], [start, *column["rows"]])
    lines["head phase, backbone frozen: the same for all"] = ("0.35", "o-", head)
    figure = matplotlib.figure.Figure(figsize=(10, 4.2), layout="constrained")
    titles = {"val_accuracy": "Validation accuracy", "val_loss": "Validation loss"}
    for axis, (key, title) in zip(figure.subplots(1, 2), titles.items()):
        for label, (color, line, rows) in lines.items():
            points = zip(*((row["epoch"], row[key]) for row in rows))
            axis.plot(*points, line, color=color, markersize=4, label=label)
        axis.axvline(start["epoch"], color="0.6", linestyle=":", linewidth=1, zorder=0)
        at_top = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top"}
        axis.annotate("fine-tuning begins ", (start["epoch"], 1), color="0.35", **at_top)
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.margins(y=0.12)
        axis.grid(axis="y", color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=140)


def report(settings):
    program.prepare_json(settings.figure)
    result = compare(settings)
    program.write_json(settings.output_json, settings, **result)
    if settings.figure:
        save_figure(settings.figure, result)
    return f"{table(result)}\n\n{conclusion(result)}"


if __name__ == "__main__":
    program.main(Settings, report)
