"""Small talk between two people: a GPT-2 of 4 layers x 256 from scratch on 4,013 English dialogues, one turn per line.

    python scripts/prepare.py --config=configs/gpt_chitchat.py
    python scripts/train.py --config=configs/gpt_chitchat.py --workdir=runs/gpt_chitchat
    python scripts/generate.py --model=runs/gpt_chitchat

A document is a dialogue; each line is one speaker's turn. So a prompt is a line with its end, and the answer is the
next line: `generation.stop` ends it there. Type `Hi, how are you?\\n` after the last command.

Test dialogues: 1.797 bits per byte, perplexity 93 (a token is 3.6 bytes); 1,400 steps in about 4 min, 13,600 tokens
per second (2 cores of an AMD EPYC with avx512_bf16, TensorFlow 2.21, 2026-11-25). A model this small answers
in sentences, but seldom the question: `Hi, how are you?` got `I have one day and I love to watch it. It is really
cool.`

The dialogues are of paid volunteers and unmoderated; the model's output resembles them.
Dialogues: chitchat-dataset 0.9.0 (MIT).
"""

from aigc_tf.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    GenerationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainingConfig,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="gpt_chitchat",
        task="generate",
        data=DataConfig(
            sources=("sample:chitchat",),
            text_column="text",
            drop_duplicates=True,
            split="hash",
            licence="MIT (chitchat-dataset)",
            max_length=256,
        ),
        tokenizer=TokenizerConfig(source="train", vocabulary_size=4096),
        model=ModelConfig(dropout=0.0, num_layers=4, hidden_dim=256, num_heads=4, intermediate_dim=1024),
        training=TrainingConfig(
            num_steps=1400,
            global_batch_size=8,
            evaluate_every=350,
            checkpoint_every=350,
            optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.1, beta_2=0.99),
            schedule=ScheduleConfig(warmup_steps=40, name="cosine"),
        ),
        evaluation=EvaluationConfig(batch_size=16, sample_prompts=("Hi, how are you?\n",)),
        generation=GenerationConfig(max_new_tokens=60, temperature=0.7, top_p=0.9, stop=("\n",)),
    )
