"""Shakespeare, continued: a GPT-2 of 4 layers x 256 from scratch, on 37 of the 42 works.

    python scripts/prepare.py --config=configs/gpt_shakespeare.py
    python scripts/train.py --config=configs/gpt_shakespeare.py --workdir=runs/gpt_shakespeare
    python scripts/generate.py --model=runs/gpt_shakespeare --prompt="To be, or not"

Tested on Hamlet, Macbeth, Twelfth Night and the Sonnets: 2.279 bits per byte after 1,000 steps of 2,048 tokens, 2 min
49 s at 12,100 tokens per second, and 2.300 with --config.training.num_steps=880 (1.80 M tokens); seed 0, 2 cores of
an AMD EPYC with avx512_bf16, TensorFlow 2.21, 2026-11-25. transformers on PyTorch with the same windows and recipe,
by benchmarks/generator_reference.py: 2.267 at 9,700 tokens per second, so this has 1.25 of its speed. `xz -9e`
primed with the training text was measured elsewhere at 2.477.
Texts: Project Gutenberg, public domain, by the package shakespeare 0.6; acts III and IV of its Cymbeline are missing.
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
        name="gpt_shakespeare",
        task="generate",
        data=DataConfig(
            sources=("sample:shakespeare",),
            format="document",
            split="files",
            test_files=("hamlet_gut.txt", "macbeth_gut.txt", "twelfth_night_gut.txt", "sonnets_gut.txt"),
            validation_files=("two_gentlemen_of_verona_gut.txt",),
            licence="public domain (Project Gutenberg)",
            max_length=256,
        ),
        tokenizer=TokenizerConfig(source="train", vocabulary_size=4096),
        model=ModelConfig(dropout=0.0, num_layers=4, hidden_dim=256, num_heads=4, intermediate_dim=1024),
        training=TrainingConfig(
            num_steps=1000,  # 2.05 M tokens, 1.4 epochs
            global_batch_size=8,
            evaluate_every=500,
            checkpoint_every=500,
            optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.1, beta_2=0.99),
            schedule=ScheduleConfig(warmup_steps=40, name="cosine"),
        ),
        evaluation=EvaluationConfig(batch_size=16, sample_prompts=("HAMLET.\n",)),
        generation=GenerationConfig(max_new_tokens=100, temperature=0.8, top_p=0.95),
    )
