"""What was tested is what is exported: the same tokens in a process without this package, by ops a stock server has."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.generation.beam import beam_search
from aigc_tf.generation.decoding import generate
from aigc_tf.generation.sampling import Settings, make_settings
from aigc_tf.generation.stopping import build_stop_table
from aigc_tf.serving.gate.op_gate import check_servable, graph_ops
from tests.toy_language_model import ToyModel, padded

VOCABULARY, CAPACITY, END = 300, 20, 2
PROMPTS = [[5], [7, 8, 9], [3, 3, 3, 3], [10, 4]]
IN_ANOTHER_PROCESS = """
import sys
import numpy as np
import tensorflow as tf
folder, inputs, outputs = sys.argv[1:]
module = tf.saved_model.load(folder)
arguments = {name: tf.constant(value) for name, value in np.load(inputs).items()}
signatures = module.signatures
found = {name + "/" + key: value for name in signatures for key, value in signatures[name](**arguments).items()}
assert not any(name.startswith("aigc_tf") for name in sys.modules)
np.savez(outputs, **found)
"""


class Exported(tf.Module):
    def __init__(self):
        super().__init__()
        self.model = ToyModel(VOCABULARY)
        pieces = [b"%d" % token for token in range(VOCABULARY)]
        self.stop = build_stop_table([b"77", b"2718"], pieces)
        vectors = {name: tf.TensorSpec([None], dtype, name) for name, dtype in _dtypes().items()}
        ids = tf.TensorSpec([None, None], tf.int32, "ids")
        specs = {"ids": ids, "lengths": tf.TensorSpec([None], tf.int32, "lengths"), **vectors}
        self.sampled = tf.function(self._sampled, input_signature=[specs])
        self.searched = tf.function(self._searched, input_signature=[specs])

    def _sampled(self, inputs):
        settings = Settings(**{name: inputs[name] for name in Settings._fields})
        cache = self.model.empty_cache(tf.shape(inputs["ids"])[0], CAPACITY)
        options = {"capacity": CAPACITY, "end_id": END, "stop": self.stop}
        return generate(self.model.step, inputs["ids"], inputs["lengths"], cache, settings, **options)._asdict()

    def _searched(self, inputs):
        cache = self.model.empty_cache(tf.shape(inputs["ids"])[0], CAPACITY)
        options = {"num_beams": 3, "capacity": CAPACITY, "end_id": END, "stop": self.stop}
        limits = inputs["max_new_tokens"]
        best, score = beam_search(self.model.step, inputs["ids"], inputs["lengths"], cache, limits, **options)
        return {**best._asdict(), "score": score}


def _dtypes():
    return {name: tensor.dtype for name, tensor in make_settings(1, max_new_tokens=1)._asdict().items()}


@pytest.mark.slow
def test_an_exported_function_gives_the_same_in_another_process(tmp_path):
    module = Exported()
    tf.saved_model.save(
        module, str(tmp_path / "model"), signatures={"sampled": module.sampled, "searched": module.searched}
    )
    check_servable(tmp_path / "model", target="2.19")
    ops = graph_ops(tmp_path / "model")
    assert not [op for op in ops if "Random" in op or op in ("Multinomial", "StatelessMultinomial")]

    ids, lengths = padded(PROMPTS)
    settings = make_settings(
        4,
        max_new_tokens=[5, 30, 0, 12],
        temperature=[0, 1, 1, 0.8],
        top_k=[0, 40, 0, 0],
        top_p=[1, 1, 1, 0.95],
        min_p=[0, 0, 0, 0.01],
        repetition_penalty=[1, 1, 1, 1.3],
        seed=[1, -2, 3, 2**62],
    )
    inputs = {"ids": ids, "lengths": lengths, **settings._asdict()}
    np.savez(tmp_path / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, "model", "inputs.npz", "outputs.npz"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, check=True, timeout=300)

    found = np.load(tmp_path / "outputs.npz")
    for name, function in {"sampled": module.sampled, "searched": module.searched}.items():
        for key, expected in function(inputs).items():
            np.testing.assert_array_equal(found[f"{name}/{key}"], expected, err_msg=f"{name}/{key}")
    assert (found["sampled/lengths"] > 0).tolist() == [True, True, False, True]
