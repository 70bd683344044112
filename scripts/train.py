"""Trains an experiment on its prepared data set, judges it and writes a report. The same command again goes on.

Example:
  python scripts/train.py --config=configs/bert_sentiment.py --workdir=runs/bert_sentiment
"""

from aigc_tf import cli

if __name__ == "__main__":
    cli.run(cli.train, flags=("config", "workdir", "dry_run", "device"), description=__doc__)
