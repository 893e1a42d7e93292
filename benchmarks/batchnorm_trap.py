"""What happens to BatchNorm when fine-tuning begins: `model.fit` with the line everybody copies,
our loop, and `fit` held.

    python benchmarks/batchnorm_trap.py --dataset=tf_flowers --data_dir=DIR
    --figure=docs/images/batchnorm_trap.png

prints a table, in about 20 minutes on 2 CPU cores. The head is trained
once, by our loop, and its best weights are where all three columns begin: same images, rates and
augmentation factors, a new Adam each.
"""

import tempfile
import time

from tl_research import quiet

quiet.import_tensorflow()

import keras
import matplotlib.figure
import measuring
import program

from tl_research import experiment
from tl_research.reporting.pictures import markdown_table
from tl_research.settings import setting
from tl_research.training import loop
from tl_research.training.events import PhaseEnded

TRAP, LOOP, HELD = "fit, base_model(x, training=False)", "our loop", "fit, InferenceBackbone"
_STYLES = {TRAP: ("#D55E00", "o-"), LOOP: ("#0072B2", "o-"), HELD: ("#009E73", "s--")}
_METRICS = ("train_accuracy", "val_accuracy", "val_loss")


class Settings(program.Training, program.Network, program.Photographs):
    """The flags of this benchmark; what is not here is as in `Config`."""

    epochs: tuple[int, ...] = setting(
        (8, 4), "with the backbone frozen, Adam 1e-3; with its top 30 % open, Adam 1e-5", low=1
    )
    figure: str | None = setting(None, "PNG file for the figure; None draws none")


def compare(settings):
    """Trains the head once and fine-tunes it in three ways.

    Returns:
        dict: `head`: a row per epoch; `start`: the row of its best weights;
        and `columns`: {name: {"start" (as evaluated by that column), "rows", "statistics_changed",
        "statistics_total"}}. A row has epoch, train_accuracy, val_accuracy and val_loss.
    """
    with tempfile.TemporaryDirectory() as place:
        config = measuring.make_config(
            settings,
            *settings.network,
            workdir=f"{place}/run",
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
    head, rows = rows[: settings.epochs[0]], rows[settings.epochs[0] :]
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
    return {"head": head, "start": start, "columns": columns}


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
    model, base_model = measuring.fit_model(config, "finetune", len(data.classes), held=held)
    # in place of the recipe's first `fit`, which trains the dense layer alone
    model.layers[-1].set_weights(head_weights)
    train, validation = (
        (side.images(range(len(side))), side.labels) for side in (data.train, data.validation)
    )
    options = {"batch_size": config.batch_size}
    loss, accuracy = model.evaluate(*validation, verbose=0, **options)
    options |= {"epochs": config.phase_plan[-1].epochs, "validation_data": validation}
    history = model.fit(*train, verbose=2, **options).history
    columns = (history[name.removeprefix("train_")] for name in _METRICS)
    rows = [dict(zip(_METRICS, row)) for row in zip(*columns)]
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
    """Returns how many of the statistics have other bits than before."""
    pairs = list(zip(before, _statistics(backbone), strict=True))
    changed = sum(a.tobytes() != b.tobytes() for a, b in pairs)
    return {"statistics_changed": changed, "statistics_total": len(pairs)}


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
    moved = map("{statistics_changed} of {statistics_total}".format_map, columns)
    lines.append(["moving statistics changed", *moved])
    first = "epoch: training accuracy / validation accuracy / validation loss"
    return markdown_table([first, f"`{TRAP}`", LOOP, f"`{HELD}`"], lines)


def save_figure(path, result):
    """Draws validation accuracy and loss over the switch for the three columns."""
    head, start = result["head"], {**result["start"], "epoch": len(result["head"])}
    lines = {"head phase, backbone frozen: the same for all": ("0.35", "o-", head)}
    for name, column in result["columns"].items():
        moved = "{statistics_changed} of {statistics_total} BatchNorm statistics moved"
        label = f"{name}: {moved.format_map(column)}"
        lines[label] = (*_STYLES[name], [start, *column["rows"]])
    figure = matplotlib.figure.Figure(figsize=(10, 4.2), layout="constrained")
    titles = {"val_accuracy": "validation accuracy", "val_loss": "validation loss"}
    for axis, (key, title) in zip(figure.subplots(1, 2), titles.items()):
        for label, (color, line, rows) in lines.items():
            points = zip(*((row["epoch"], row[key]) for row in rows))
            axis.plot(*points, line, color=color, markersize=4, label=label)
        axis.axvline(start["epoch"], color="0.6", linestyle=":")
        axis.set(xlabel="epoch; fine-tuning begins at the dotted line", title=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    figure.savefig(path, dpi=140)


def report(settings):
    program.prepare_json(settings.figure)
    result = compare(settings)
    program.write_json(settings.output_json, settings, **result)
    if settings.figure:
        save_figure(settings.figure, result)
    return table(result)


if __name__ == "__main__":
    program.main(Settings, report)
