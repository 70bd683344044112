"""Asks a running TensorFlow Serving: texts are answered by a classifier, prompts continued by a generator.

Example:
  python scripts/ask.py --server=http://localhost:8501 --model=bert_sentiment --text="A joy from start to finish."
"""

from aigc_tf.cli.asking import ask
from aigc_tf.cli.known_flags import SETTING_FLAGS, question_flags
from aigc_tf.cli.running import run

SETTINGS = (name for name in SETTING_FLAGS if name != "num_beams")
ADDRESS = ("server", "served", "version", "label", "timeout")
FLAGS = (*ADDRESS, *question_flags(), *SETTINGS, "input", "output", "overwrite")

if __name__ == "__main__":
    run(ask, flags=FLAGS, description=__doc__)
