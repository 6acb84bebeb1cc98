"""What one pass over a corpus leaves behind, per neuron and language."""
