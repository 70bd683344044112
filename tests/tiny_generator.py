"""A generator of two small layers over a vocabulary of 320 pieces, for the tests of serving."""

import numpy as np

from aigc_tf.config import GenerationConfig, ModelConfig, TokenizerConfig
from aigc_tf.data.tokenizers.tokenizers import build_tokenizer
from aigc_tf.models.generators.generator import build_generator

CONFIG = ModelConfig(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64, dropout=0.0)
MAX_LENGTH = 48
TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "Pack my box with five dozen liquor jugs!\n"] * 8
PROMPTS = ["The quick", "", "Pack my box with", "é 中文 🙂", "a" * 200, "\x00", "dog. " * 3]


def build_tokenizer_of_texts():
    return build_tokenizer(
        TokenizerConfig(source="train", vocabulary_size=320), "", lambda: TEXTS, kind="sentencepiece"
    )


def build_model(tokenizer, *, max_length=MAX_LENGTH, dtype="float32", seed=0, spare_ids=0, config=CONFIG):
    """A model of large weights, so that its continuations differ from prompt to prompt."""
    model = build_generator(
        config, vocabulary_size=tokenizer.vocabulary_size + spare_ids, max_length=max_length, dtype=dtype, seed=seed
    )
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) == 2:
            weight.assign(rng.normal(0, 0.5, weight.shape).astype(np.float32))
    return model


def build_module(model, tokenizer, *, long_prompt="cut", **changes):
    """The functions of an export, with `settings(**changes)` as the defaults."""
    from aigc_tf.serving.modules.generator_signatures import GeneratorModule

    return GeneratorModule(
        model, tokenizer, max_length=MAX_LENGTH, generation=settings(**changes), long_prompt=long_prompt
    )


def settings(**changes):
    return GenerationConfig(**{"max_new_tokens": 12, "temperature": 1.0, "seed": 3, **changes})


def request(prompts, **changes):
    """The inputs of the text signature; single values stand for all rows, a seed for seed + row."""
    import tensorflow as tf

    from aigc_tf.serving.modules.continuer import SETTINGS

    values = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": np.arange(len(prompts)) + 3,
        **changes,
    }
    texts = [prompt.encode() if isinstance(prompt, str) else prompt for prompt in prompts]
    vectors = {
        name: tf.constant(np.broadcast_to(np.asarray(values[name]), [len(prompts)]), dtype)
        for name, dtype in SETTINGS.items()
    }
    return {"prompt": tf.constant(texts, tf.string, shape=[len(texts)]), **vectors}
