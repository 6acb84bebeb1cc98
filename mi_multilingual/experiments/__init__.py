"""Many measurements from one file: what to run, running it so that nothing is lost, and reading it back."""
