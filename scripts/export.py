"""Publishes a run's weights as a SavedModel that takes text, checked to answer like the run's model.

Example:
  python scripts/export.py --workdir=runs/bert_sentiment
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import export

if __name__ == "__main__":
    run(export, flags=("workdir", "checkpoint", "config", "dry_run"), description=__doc__)
