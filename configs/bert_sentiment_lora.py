"""As bert_sentiment, with LoRA: 338,690 of 23.1 M weights train, the adapter is 1.4 MB.

    python scripts/prepare.py --config=configs/bert_sentiment_lora.py
    python scripts/train.py --config=configs/bert_sentiment_lora.py --workdir=runs/bert_sentiment_lora

Every kernel has a low rank beside it, the pooler's too: the classifier reads what the pooler makes of the first token,
and MiniLM's was never trained for that. The rate is ten to twenty times that of training all weights, as is usual.
"""

import bert_sentiment

from aigc_tf.config import AdapterConfig, ExperimentConfig


def get_config() -> ExperimentConfig:
    config = bert_sentiment.get_config()
    config.name = "bert_sentiment_lora"
    config.adapter = AdapterConfig(enabled=True, rank=8, alpha=16.0, targets=("*kernel",))
    config.training.learning_rate = 1e-3
    return config
