"""Asks a running TensorFlow Serving: texts are answered by a classifier, prompts continued by a generator.

Example:
  python scripts/ask.py --server=http://localhost:8501 --model=bert_sentiment --text="A joy from start to finish."
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import ask

SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
ADDRESS = ("server", "served", "version", "label", "timeout")
FLAGS = (*ADDRESS, "text", "text_b", "prompt", *SETTINGS, "input", "output", "overwrite")

if __name__ == "__main__":
    run(ask, flags=FLAGS, description=__doc__)
