"""Language models with hooks on every neuron."""
