"""How a live model of the task `classify` is asked."""

import keras

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.serving.local.answerer import Answerer
from aigc_tf.serving.local.predictor import predicting_answerer
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, text_function
from aigc_tf.tasks.classify.serving import serving_spec
from aigc_tf.tasks.classify.spec import LABEL, TEXT


def classification_answerer(model: keras.Model, config: ExperimentConfig, facts: DataFacts) -> Answerer:
    """Returns an answerer for texts or pairs of texts, which uses the functions that an export publishes."""
    module = ClassifierModule(model, facts.encoder(TEXT), serving_spec(config, facts))
    columns = (config.data.text_column, config.data.text_b_column)
    return predicting_answerer(
        text_function(module),
        columns=columns if len(facts.schema.text_names) == 2 else columns[:1],
        label_names=facts.encoder(LABEL).names,
        batch_size=config.evaluation.batch_size,
    )
