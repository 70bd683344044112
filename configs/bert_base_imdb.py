"""Film reviews, positive or negative: BERT base uncased (110 M weights) on the 50,000 reviews of IMDb.

    python scripts/prepare.py --config=configs/bert_base_imdb.py --config.data.tfds_download=true
    python scripts/train.py --config=configs/bert_base_imdb.py --workdir=runs/bert_base_imdb

Needs the network once, for TFDS (80 MB) and the KerasNLP preset, and a GPU or TPU to be done in reasonable time.
Validation is the tenth of the training reviews that the hash rule picks; the test split is IMDb's own.
Texts: Maas et al. 2011, Learning Word Vectors for Sentiment Analysis, ACL-11. Weights: Devlin et al. 2019, BERT.
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
        name="bert_base_imdb",
        task="classify",
        data=DataConfig(
            sources=("tfds:imdb_reviews",),
            text_column="text",
            label_column="label",
            split="given",
            licence="no licence stated; free for research (Maas et al. 2011)",
            max_length=256,
            truncation="head_tail",  # a review's verdict often stands at its end
        ),
        model=ModelConfig(source="bert_base_en_uncased"),
        training=TrainingConfig(
            num_steps=2110,  # 3 epochs
            global_batch_size=32,
            evaluate_every=352,
            checkpoint_every=352,
            optimizer=OptimizerConfig(learning_rate=3e-5),
            schedule=ScheduleConfig(warmup_steps=127, name="linear"),
        ),
        evaluation=EvaluationConfig(batch_size=128),
    )
