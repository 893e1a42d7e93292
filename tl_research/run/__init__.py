"""The directory of a run: its files, checkpoints and environment, and replacements offline."""
