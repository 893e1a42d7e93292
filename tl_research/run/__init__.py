"""The directory of a run: its files, its checkpoints, its machine, and what was not reached."""
