"""The APIs of TensorFlow Serving through which a client calls a signature."""

import enum

SERVING_DEFAULT = "serving_default"
"""The signature of a request without a signature name."""


class Api(enum.StrEnum):
    """An API, by its name in the server's REST paths, such as `:predict`."""

    PREDICT = enum.auto()
    """Tensors in, tensors out: every signature supports it."""
    CLASSIFY = enum.auto()
    """Serialized tf.Examples in, `classes` and `scores` out."""
    REGRESS = enum.auto()
    """Serialized tf.Examples in, `outputs` out."""
