"""Figures are drawn in one style, whatever the user's matplotlibrc says."""

import matplotlib

from tl_research.reporting import figures


def test_users_style_of_matplotlib_does_not_reach_in(tmp_path):
    row = {"phase": "head", "epoch": 1, "train_loss": 1.0, "val_loss": 2.0}
    history = [row, {**row, "phase": "finetune", "epoch": 2}]
    figures.save_curves(str(tmp_path / "plain.png"), history)
    users = {"text.usetex": True, "lines.linewidth": 9, "figure.dpi": 300}  # LaTeX is not here
    with matplotlib.rc_context(users):
        figures.save_curves(str(tmp_path / "users.png"), history)
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "users.png").read_bytes()
