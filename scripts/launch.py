"""Runs a command as several workers on this host, each with its share of the GPUs and cores.

Example:
  python scripts/launch.py --num_workers=2 -- \
      python scripts/train.py --config=configs/bert_sentiment.py \
      --workdir=runs/bert_sentiment
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import launch

if __name__ == "__main__":
    run(launch, flags=("num_workers", "command"), description=__doc__)
