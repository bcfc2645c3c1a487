"""Training: objectives, optimizers, and the loop that drives them. Never imports the engine."""
