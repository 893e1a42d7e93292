"""What is printed while a run trains, to the character."""

import numpy as np

from tl_research.config import Config
from tl_research.reporting.console import Console
from tl_research.training.events import EpochEnded, PhaseBegan, PhaseEnded, StepsCompiled

_NAMES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


class _Run:
    """Tells a console of phases and epochs, at the seconds that are said."""

    def __init__(self, **settings):
        self.config = Config(dataset="drawn_flowers", **settings)
        self.now, self.rows = 0.0, []
        self.console = Console(self.config, lambda: self.now)

    def begin(self, index, opened):
        self.phase, now = self.config.phase_plan[index], self.now
        layers = tuple(f"layer{number}" for number in range(opened))
        began = PhaseBegan(self.phase, 0, (), 10, layers, None, 1000)
        self.console(began)
        self.now = now + 2.0
        self.console(StepsCompiled(self.phase, 0, 2.0, False, None))

    def epoch(self, seconds, numbers, is_best, names=_NAMES, first=False, waited=0.0, **more):
        self.now += seconds
        row = {"phase": self.phase.name, "epoch": len(self.rows) + 1, "step": 1}
        self.rows.append(row | dict(zip(names, numbers)) | {"seconds": 0.1, **more})
        event = EpochEnded(
            phase=self.phase,
            row=self.rows[-1],
            history=tuple(self.rows),
            measured=names,
            logits=np.zeros((100, 2), np.float32),
            is_best=is_best,
            is_first=first,
            selected=None,
            waited=waited,
        )
        self.console(event)

    def end(self, epochs, best):
        result = {
            "epochs": epochs,
            "best_epoch": best,
            "val_loss": 0.5,
            "audit": {"batchnorm_stats_changed": 0},
        }
        self.console(PhaseEnded(self.phase, 1, result, ("val_loss",), 0.5, None, None))


def test_rows_of_a_run_have_a_mark_and_the_time_that_is_left(capsys):
    run = _Run(epochs=(3, 4), patience=(0, 2))
    run.begin(0, 0)
    run.epoch(10, (1.25, 0.5, 1.5, 0.25), True)
    run.epoch(4, (1.0, 0.625, 1600.0, 0.5), False)
    run.epoch(1, (0.75, 0.75, float("nan"), 0.5), False)
    run.end(3, 1)
    run.begin(1, 4)
    run.epoch(200, (0.75, 0.75, 1.125, 0.5), True, skipped_steps=3, loss_scale=1024.0)
    run.epoch(20, (0.75, 0.75, 1.25, 0.5), False, skipped_steps=0, loss_scale=1024.0)
    run.end(2, 4)
    # The first epoch leaves 2 of its phase, 2 x 10 s, and later ones, of which nothing is known;
    # the second 1 x 7 s, the third none of its phase; the fourth 3 x 200 s, the fifth 2 x 110.
    assert capsys.readouterr().out.splitlines() == [
        "head: training the head, backbone frozen; up to 3 epochs",
        "preparing features and compiling the training step",
        "epoch  phase       loss      acc   val_loss   val_acc     time      left",
        "  1/7  head      1.2500   0.5000     1.5000*   0.2500     10 s    > 20 s",
        "  2/7  head      1.0000   0.6250    1.6e+03    0.5000    4.0 s   > 7.0 s",
        "  3/7  head      0.7500   0.7500        nan    0.5000    1.0 s",
        "head: best epoch 1 (val_loss 0.5000); frozen part unchanged",
        "finetune: training the head and the top 4 of 10 backbone layers; up to 4 epochs",
        "preparing features and compiling the training step",
        "epoch  phase       loss      acc   val_loss   val_acc     time      left",
        "  4/7  finetune  0.7500   0.7500     1.1250*   0.5000    3 min    10 min",
        "loss scale 1024, 3 steps skipped",
        "  5/7  finetune  0.7500   0.7500     1.2500    0.5000     20 s     4 min",
        "finetune: best epoch 4 (val_loss 0.5000); stopped early: no better val_loss in 2 epochs; "
        "frozen part unchanged",
    ]


def test_row_has_the_number_that_is_selected_by_and_no_more_than_a_line(capsys):
    names = (*_NAMES, "val_mean_absolute_error", "error_of_the_rarest_class")
    run = _Run(epochs=(2, 0), select_by="error_of_the_rarest_class", verbose=True)
    run.begin(0, 10)
    run.epoch(1, (0.5,) * 6, True, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "head: training the head and the backbone; up to 2 epochs"
    assert lines[2].startswith("phase head: 10 of 10 backbone layers unfrozen, 0 of 1,000 ")
    assert lines[3] == "phase head: steps traced and compiled in 2.0 s, XLA off"
    assert lines[4:] == [
        "epoch  phase       loss      acc   error_of_the_rarest_class     time      left",
        "  1/2  head      0.5000   0.5000                      0.5000*   1.0 s     1.0 s",
    ]


def test_time_that_the_first_epoch_of_a_phase_waited_is_said(capsys):
    run = _Run(epochs=(3, 0), patience=(0, 0))
    run.begin(0, 0)
    run.epoch(10, (1.25, 0.5, 1.5, 0.25), True, first=True, waited=0.0312)
    run.epoch(10, (1.25, 0.5, 1.4, 0.25), True, waited=0.5)
    run.epoch(10, (1.25, 0.5, 1.3, 0.25), True, first=True, waited=0.0049)
    line = "3.1% of the training time was spent waiting for images or features"
    assert [text for text in capsys.readouterr().out.splitlines() if "waiting" in text] == [line]
