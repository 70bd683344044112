"""Answers in small talk: a GPT-2 of 4 layers x 256 from scratch on pairs of a turn and its answer, in packed rows.

    python scripts/prepare.py --config=configs/gpt_chitchat_turns.py
    python scripts/train.py --config=configs/gpt_chitchat_turns.py --workdir=runs/gpt_chitchat_turns
    python scripts/generate.py --model=runs/gpt_chitchat_turns

An example is a prompt, its response and the end of text. Several share a row of 512 tokens, none sees another, and the
loss counts only the responses. A prompt is a line with its end. The dialogues and splits are those of
configs/gpt_chitchat.py, but here an answer sees only the turn before it. Type `Hi, how are you?\\n` after the
last command.

Test pairs: 1.898 bits per byte of the responses, perplexity 112; 1,200 steps, which are half an epoch, in 13 min at
3,100 tokens per second on a busy machine (2 cores of an AMD EPYC with avx512_bf16, TensorFlow 2.21,
2026-11-25). `Hi, how are you?` got `I have one.`: a model this small learns the form of an answer, not its content.

The dialogues are of paid volunteers and unmoderated; the model's output resembles them.
Dialogues: chitchat-dataset 0.9.0 (MIT).
"""

import gpt_chitchat

from aigc_tf.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = gpt_chitchat.get_config()
    config.name = "gpt_chitchat_turns"
    config.data.sources = ("sample:chitchat-turns",)
    config.data.text_column = "prompt"
    config.data.text_b_column = "response"
    config.data.split = "files"
    config.data.validation_files = ("turns-validation.jsonl",)
    config.data.test_files = ("turns-test.jsonl",)
    config.data.packing = True
    config.data.max_length = 512
    config.training.global_batch_size = 4
    config.training.num_steps = 1200
    config.training.evaluate_every = config.training.checkpoint_every = 600
    config.generation.stop = ()
    return config
