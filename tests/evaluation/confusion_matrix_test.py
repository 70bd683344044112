"""Confusion matrices of any size and with any names can be drawn."""

import warnings

import numpy as np
import pytest

from aigc_tf.evaluation.confusion_matrix import plot_confusion_matrix


@pytest.mark.parametrize("num_classes", [1, 2, 12, 50, 130])
def test_a_confusion_matrix_of_any_size_is_drawn(num_classes):
    image = plot_confusion_matrix(
        np.diag(np.arange(num_classes)), [f"class number {index}" for index in range(num_classes)]
    )
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert 300 < image.shape[0] < 2500
    assert 300 < image.shape[1] < 2500
    assert len(np.unique(image[..., 0])) > 10


def test_hostile_class_names_are_drawn_without_a_warning():
    names = ["中文标签", "", "$x_{unclosed", "two\nlines", "Ж", "x" * 500, "🙂", "\ud800", "עברית"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = plot_confusion_matrix(np.full((9, 9), 123456789), names)
    assert image.min() < 128


def test_a_matrix_without_names_for_its_classes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        plot_confusion_matrix(np.eye(2), ["one"])


def test_the_same_matrix_gives_the_same_pixels():
    first = plot_confusion_matrix([[3, 1], [0, 2]], ["a", "b"])
    np.testing.assert_array_equal(first, plot_confusion_matrix([[3, 1], [0, 2]], ["a", "b"]))
