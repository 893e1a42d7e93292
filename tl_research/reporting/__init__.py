"""What a run tells: TensorBoard summaries, figures, results, progress."""
