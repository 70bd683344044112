"""Sentiment of short English texts: MiniLM (BERT, 22.7 M weights) on 23,703 snippets that people rated from -4 to 4.

    python scripts/prepare.py --config=configs/bert_sentiment.py
    python scripts/train.py --config=configs/bert_sentiment.py --workdir=runs/bert_sentiment

Takes 4 min 45 s with evaluation on 2 cores (AMD EPYC with avx512_bf16, TensorFlow 2.21, 2026-11-23), 134 examples
per second during training. Test accuracy of the best weights over seeds 0 to 4: mean 0.880, from 0.878 to 0.884; always
guessing the larger class gives 0.537. transformers on PyTorch with the same batches, seed 0, by
benchmarks/classifier_reference.py: 0.878 at 149 examples per second, so this is 0.90 of its speed.

Rows rated closer than 0.5 to 0 are left out; the others are positive or negative.
Texts and ratings: Hutto & Gilbert 2014, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text, ICWSM-14. Weights: all-MiniLM-L6-v2.
"""

from aigc_tf.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="bert_sentiment",
        task="classify",
        data=DataConfig(
            sources=("sample:vader",),
            format="tsv",
            column_names=("id", "rating", "text"),
            text_column="text",
            label_column="rating",
            label_thresholds=(0.0,),
            label_margin=0.5,
            label_names=("negative", "positive"),
            split="hash",
            licence="MIT (texts: Hutto & Gilbert 2014)",
            max_length=128,
        ),
        model=ModelConfig(source="sample:minilm"),
        training=TrainingConfig(
            num_steps=972,  # 2 epochs
            global_batch_size=32,
            evaluate_every=324,
            checkpoint_every=324,
            optimizer=OptimizerConfig(learning_rate=5e-5),
            schedule=ScheduleConfig(warmup_steps=58, name="linear"),
        ),
        evaluation=EvaluationConfig(batch_size=64),
    )
