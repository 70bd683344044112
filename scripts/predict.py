"""Answers texts with a run or an exported model: one JSON object a line, in the order of the texts.

Example:
  python scripts/predict.py --model=saved_models/bert_sentiment --text="A joy from start to finish." --text="Dull."
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import predict

FLAGS = ("model", "text", "text_b", "input", "output", "overwrite", "checkpoint")

if __name__ == "__main__":
    run(predict, flags=FLAGS, description=__doc__)
