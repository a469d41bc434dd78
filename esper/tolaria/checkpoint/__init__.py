"""Checkpoints: what a run must keep to go on after it was killed, and the files that keep it."""
