"""Trains an experiment on its prepared data set, evaluates it and writes a report. The same command again resumes.

Example:
  python scripts/train.py --config=configs/bert_sentiment.py --workdir=runs/bert_sentiment
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import train

if __name__ == "__main__":
    run(train, flags=("config", "workdir", "dry_run", "device"), description=__doc__)
