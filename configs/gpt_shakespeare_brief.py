"""As gpt_shakespeare, with 150 of the 1,000 steps: what `make demo` trains if all steps would take too long.

    python scripts/prepare.py --config=configs/gpt_shakespeare_brief.py
    python scripts/train.py --config=configs/gpt_shakespeare_brief.py --workdir=runs/gpt_shakespeare_brief

2.636 bits per byte on the test works with seed 0, in float32, after 0.31 M tokens. The whole command took 5.1 min of
processor time, which is 2 min 34 s of both cores (2 cores of an AMD EPYC with AVX2 and without avx512_bf16, other work
beside it, TensorFlow 2.21, Keras 3.15.1, KerasNLP 0.32.0, 2026-11-30). The name, and so the prepared data set, is that
of gpt_shakespeare.
"""

import gpt_shakespeare

from aigc_tf.config import ExperimentConfig


def get_config() -> ExperimentConfig:
    config = gpt_shakespeare.get_config()
    config.training.num_steps = 150
    config.training.schedule.warmup_steps = 15
    return config
