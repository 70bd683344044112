"""GPT-2 (124 M weights), trained further on your own texts: here Shakespeare's, with its own vocabulary.

    python scripts/prepare.py --config=configs/gpt2_finetune.py
    python scripts/train.py --config=configs/gpt2_finetune.py --workdir=runs/gpt2_finetune

Needs the network once, for the KerasNLP preset, and a GPU or TPU to be done in reasonable time. GPT-2's weights were
not available: a preset of its size with random weights trained at 625 tokens per second with a peak of 14.7 GiB (so
the whole takes 65 min), was exported in 2 min, and the export generated 173 tokens per second (2 cores of an AMD EPYC
with avx512_bf16, TensorFlow 2.21, 2026-11-25); GPT-2's own results were not measured. With a Hugging Face folder
instead of the preset (config.json, model.safetensors, vocab.json, merges.txt) no network is needed:
--config.model.source=FOLDER, for both commands.
Weights: Radford et al. 2019, Language Models are Unsupervised Multitask Learners.
"""

from aigc_tf.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    GenerationConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
)


def get_config() -> ExperimentConfig:
    return ExperimentConfig(
        name="gpt2_finetune",
        task="generate",
        data=DataConfig(
            sources=("sample:shakespeare",),
            format="document",
            split="files",
            test_files=("hamlet_gut.txt", "macbeth_gut.txt", "twelfth_night_gut.txt", "sonnets_gut.txt"),
            validation_files=("two_gentlemen_of_verona_gut.txt",),
            licence="public domain (Project Gutenberg)",
            max_length=512,
        ),
        model=ModelConfig(source="gpt2_base_en", dropout=0.1),
        training=TrainingConfig(
            num_steps=600,
            global_batch_size=8,
            evaluate_every=150,
            checkpoint_every=150,
            optimizer=OptimizerConfig(learning_rate=5e-5),
            schedule=ScheduleConfig(warmup_steps=30, name="cosine"),
        ),
        evaluation=EvaluationConfig(batch_size=8, sample_prompts=("HAMLET.\n",)),
        generation=GenerationConfig(max_new_tokens=200, temperature=0.8, top_p=0.95),
    )
