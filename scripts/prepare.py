"""Makes the prepared data set of an experiment: reads its sources, splits them, turns text into token ids.

Example:
  python scripts/prepare.py --config=configs/bert_sentiment.py
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import prepare

if __name__ == "__main__":
    run(prepare, flags=("config", "overwrite", "dry_run"), description=__doc__)
