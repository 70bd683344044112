"""Which models can be trained on packed rows."""

import keras_nlp
import pytest

from aigc_tf.errors import InputError
from aigc_tf.models.generators.generator import build_generator
from aigc_tf.models.packed import check_packed
from tests import tiny_classifier, tiny_generator


def test_bert_and_our_gpt2_can():
    check_packed(tiny_classifier.build_model())
    check_packed(build_generator(tiny_generator.CONFIG, vocabulary_size=40, max_length=16))


def test_another_network_is_refused_with_those_that_fit():
    sizes = dict(vocabulary_size=40, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16)
    roberta = keras_nlp.models.RobertaTextClassifier(keras_nlp.models.RobertaBackbone(**sizes), num_classes=2)
    with pytest.raises(InputError, match=r"works with BERT and GPT-2.*a RobertaBackbone\. Set data\.packing to False"):
        check_packed(roberta)
