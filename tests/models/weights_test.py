"""The hash of a model's weights, on bytes written by hand."""

import hashlib

import numpy as np
import pytest

from aigc_tf.models.weights import weights_sha256


def test_weights_hash_is_over_the_bytes_in_order_of_path():
    first, second = np.array([1.0, 2.0], np.float32), np.array([[3]], np.int32)
    expected = hashlib.sha256(bytes.fromhex("0000803f00000040" + "03000000")).hexdigest()
    assert weights_sha256({"a/kernel": first, "b": second}) == expected
    assert weights_sha256({"b": second, "a/kernel": first}) == expected
    assert weights_sha256({"a/kernel": second, "b": first}) != expected


def test_weights_hash_does_not_depend_on_memory_layout():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = weights_sha256({"w": array})
    assert weights_sha256({"w": np.asfortranarray(array)}) == expected
    assert weights_sha256({"w": array.astype(">f4")}) == expected
    assert weights_sha256({"w": array[::-1][::-1]}) == expected


def test_weights_hash_covers_scalars_and_bfloat16_and_refuses_objects():
    import ml_dtypes

    expected = hashlib.sha256(bytes.fromhex("803f")).hexdigest()
    assert weights_sha256({"w": np.array(1.0, ml_dtypes.bfloat16)}) == expected
    with pytest.raises(ValueError, match="numeric"):
        weights_sha256({"w": np.array(["text", None])})


def test_one_changed_bit_changes_the_weights_hash():
    array = np.zeros(1000, np.float32)
    changed = array.copy()
    changed[999] = np.float32(1e-45)
    assert weights_sha256({"w": array}) != weights_sha256({"w": changed})
