"""Continues texts with a run or an exported model: a prompt, several, a file of them, or what you type.

Example:
  python scripts/generate.py --model=runs/demo/gpt_shakespeare --prompt="To be, or not" --temperature=0.8
"""

from aigc_tf.cli.asking import generate
from aigc_tf.cli.known_flags import SETTING_FLAGS, question_flags
from aigc_tf.cli.running import run

FLAGS = ("model", *question_flags("generate"), *SETTING_FLAGS, "input", "output", "overwrite", "checkpoint")

if __name__ == "__main__":
    run(generate, flags=FLAGS, description=__doc__)
