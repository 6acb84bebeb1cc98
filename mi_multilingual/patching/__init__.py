"""Neurons changed while the model runs."""
