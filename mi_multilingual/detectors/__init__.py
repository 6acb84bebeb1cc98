"""Evidence in, scores and sets of neurons out; no model."""
