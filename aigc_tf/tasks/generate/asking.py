"""How a live model of the task `generate` is asked."""

import keras

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.serving.local.answerer import Answerer
from aigc_tf.serving.local.continuing import continuing_answerer
from aigc_tf.serving.local.text_generator import TextGenerator
from aigc_tf.tasks.generate.spec import TEXT


def generation_answerer(model: keras.Model, config: ExperimentConfig, facts: DataFacts) -> Answerer:
    """Returns an answerer that continues prompts."""
    tokenizer = facts.encoder(TEXT)
    generator = TextGenerator(model, tokenizer, max_length=config.data.max_length)
    return continuing_answerer(generator, config.generation, column=config.data.text_column)
