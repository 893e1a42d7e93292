"""The explicit loop: state, steps, frozen features, checkpoints, audit."""
