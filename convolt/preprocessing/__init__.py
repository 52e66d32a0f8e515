"""Keras's import paths of preprocessing; holds nothing of its own."""
