"""Calibration: the data a model is run on, and what is learnt from it."""

from graphopt.calibration.datasets import Dataset, dataset_from_arrays, dataset_from_feeds, open_dataset
from graphopt.calibration.images import Preprocessing, read_preprocessing
from graphopt.calibration.random_inputs import random_inputs

__all__ = [
    "Dataset",
    "Preprocessing",
    "dataset_from_arrays",
    "dataset_from_feeds",
    "open_dataset",
    "random_inputs",
    "read_preprocessing",
]
