"""Continues texts with a run or an exported model: a prompt, several, a file of them, or what you type.

Example:
  python scripts/generate.py --model=runs/demo/gpt_shakespeare --prompt="To be, or not" --temperature=0.8
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import generate

SETTINGS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "stop",
    "num_beams",
    "seed",
)
FLAGS = ("model", "prompt", *SETTINGS, "input", "output", "overwrite", "checkpoint")

if __name__ == "__main__":
    run(generate, flags=FLAGS, description=__doc__)
