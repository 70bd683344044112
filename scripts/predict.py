"""Answers texts with a run or an exported model: one JSON object per line, in the order of the texts.

Example:
  python scripts/predict.py --model=saved_models/bert_sentiment --text="A joy from start to finish." --text="Dull."
"""

from aigc_tf.cli.asking import predict
from aigc_tf.cli.known_flags import question_flags
from aigc_tf.cli.running import run

FLAGS = ("model", *question_flags("predict"), "input", "output", "overwrite", "checkpoint")

if __name__ == "__main__":
    run(predict, flags=FLAGS, description=__doc__)
