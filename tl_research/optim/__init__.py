"""Parameter groups, one optimizer per group, learning-rate schedules."""
