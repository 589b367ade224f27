"""The data and the threads of every test of training."""

from training_data import data, one_thread  # noqa: F401
