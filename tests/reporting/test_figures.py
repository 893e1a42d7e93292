"""Figures are drawn in one style, whatever the user's matplotlibrc says."""

import matplotlib

from tl_research.reporting import figures


def test_users_style_of_matplotlib_does_not_reach_in(tmp_path):
    row = {"phase": "head", "epoch": 1, "train_loss": 1.0, "val_loss": 2.0}
    history = [row, {**row, "phase": "finetune", "epoch": 2}]
    what = (history, [{"best_epoch": 2}], {"epoch": 2, "val_loss": 2.0}, (8, 4))
    figures.save_curves(str(tmp_path / "plain.png"), *what)
    users = {"text.usetex": True, "lines.linewidth": 9, "figure.dpi": 300}  # LaTeX is not here
    with matplotlib.rc_context(users):
        figures.save_curves(str(tmp_path / "users.png"), *what)
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "users.png").read_bytes()


def test_loss_is_drawn_without_smoothing_where_that_is_known(tmp_path):
    row = {"phase": "head", "epoch": 1, "train_loss": 1.0, "val_loss": 2.0, "train_plain_loss": 0.5}
    drawn = []
    for change in ({}, {"train_loss": 1.5}, {"train_plain_loss": 0.7}):
        history = [row | change, row | change | {"epoch": 2}]
        path = tmp_path / f"{len(drawn)}.png"
        selected = {"epoch": 2, "val_loss": 2.0}
        figures.save_curves(str(path), history, [{"best_epoch": 2}], selected, (8, 4))
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
