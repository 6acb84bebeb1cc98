"""Which neurons belong to which language: one method a file."""
