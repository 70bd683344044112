"""Makes the prepared data set of an experiment: reads its sources, splits them, turns text into token ids.

Example:
  python scripts/prepare.py --config=configs/bert_sentiment.py
"""

from aigc_tf import cli

if __name__ == "__main__":
    cli.run(cli.prepare, flags=("config", "overwrite", "dry_run"), description=__doc__)
