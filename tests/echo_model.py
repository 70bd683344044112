"""Models whose answers can be told by hand, for the tests of what stands for the server."""

import os

import tensorflow as tf

TYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")


class Echo(tf.Module):
    """Gives back what it gets, in many types and shapes."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable([[1.0], [2.0]])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def say(self, text):
        return {"text": text, "size": tf.strings.length(text)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="x"),
            tf.TensorSpec([None], tf.int32, name="n"),
            tf.TensorSpec([None], tf.bool, name="flag"),
        ]
    )
    def add(self, x, n, flag):
        sums = tf.squeeze(x @ self.weight, 1) + tf.cast(n, tf.float32)
        return {"sums": tf.where(flag, sums, -1.0), "flag": ~flag}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="n")])
    def cast(self, n):
        return {name: tf.cast(n, name) for name in TYPES}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="n")])
    def half(self, n):
        return {"half": tf.cast(n, tf.float16)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="word")])
    def scalar(self, word):
        return {"words": tf.stack([[word, word]]), "word": word}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="n")])
    def divide(self, n):
        return {"quotient": 7 // n}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")], jit_compile=True)
    def compiled(self, x):
        return {"y": x + 1.0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def raw(self, text):
        return {"text_bytes": text}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="ids")])
    def total(self, ids):
        return {"total": tf.reduce_sum(ids, 1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def work(self, steps):
        """Takes about a millisecond for each step."""
        matrix = tf.while_loop(
            lambda step, _: step < tf.reduce_max(steps),
            lambda step, matrix: (step + 1, tf.linalg.normalize(matrix @ matrix)[0]),
            [0, tf.ones([256, 256]) + self.weight[0, 0]],
        )[1]
        return {"done": steps + tf.cast(0.0 * matrix[0, 0], tf.int32)}

    def signatures(self):
        names = ("add", "cast", "half", "scalar", "divide", "compiled", "raw", "total", "work")
        return {"serving_default": self.say, **{name: getattr(self, name) for name in names}}


class HalfPlusThree(tf.Module):
    """The model of TensorFlow Serving's documentation (g3doc/api_rest.md), and a classifier beside it."""

    def __init__(self, *, offset=3.0):
        super().__init__()
        self.half, self.offset = tf.Variable(0.5), tf.Variable(offset)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def predict(self, x):
        return {"y": self.half * x + self.offset}

    def _read(self, examples):
        return tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, examples):
        return {"outputs": self.half * self._read(examples) + self.offset}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, examples):
        scores = tf.stack([self._read(examples), -self._read(examples)], 1)
        return {"scores": scores, "classes": tf.tile([["up", "döwn"]], [tf.shape(scores)[0], 1])}

    def signatures(self):
        return {
            "serving_default": self.predict,
            "tensorflow/serving/regress": self.regress,
            "classify": self.classify,
        }


def save(module, folder):
    """Writes a SavedModel and returns its path."""
    tf.saved_model.save(module, os.fspath(folder), signatures=module.signatures())
    return os.fspath(folder)
