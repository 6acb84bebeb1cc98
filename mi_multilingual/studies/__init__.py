"""One experiment of the literature in each file."""
