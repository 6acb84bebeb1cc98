"""The claims of the papers, a file per study; `reproduction.py` measures them."""
