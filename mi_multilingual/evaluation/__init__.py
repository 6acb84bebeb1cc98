"""What the model does: losses, answers, continuations."""
