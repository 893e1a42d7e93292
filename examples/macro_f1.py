"""The mean F1 score over the classes, beside accuracy: measured each epoch, and selected by.

    python train.py --flagfile=flowers.flags --extension=examples/macro_f1.py --select_by=macro_f1

Adds a column `macro_f1` to metrics.csv and a curve to TensorBoard; `--select_by` makes it decide
which epoch and phase are kept and when a phase stops. `--select_by=val_accuracy` needs no file.
"""

import numpy as np

from tl_research import metrics


def epoch_ends(run, row, logits):
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    confusion = metrics.confusion_matrix(run.validation.labels, predicted, classes)
    scores = [of_class["f1"] for of_class in metrics.per_class(confusion)]
    return {"macro_f1": np.nanmean(scores)}  # NaN: a class that is neither there nor predicted
