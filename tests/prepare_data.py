"""Preparing by config alone, and what is looked at in a prepared data set."""

import numpy as np

from aigc_tf.data.preparing import preparation
from aigc_tf.tasks import spec_of


def prepare(config, **options):
    """Prepares what the config's task reads."""
    return preparation.prepare(config, spec_of(config).schema(config), **options)


def tokens_of(split, name="text"):
    """The token ids of all examples, a list each."""
    return [row.tolist() for row in split.column(name).rows(np.arange(split.num_examples))]


def labels_of(split):
    """The labels of all examples."""
    return split.column("label").all().tolist()
