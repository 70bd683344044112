"""Evaluates a run's weights on its validation and test data, and updates the metrics of its report.

Example:
  python scripts/evaluate.py --workdir=runs/bert_sentiment --checkpoint=last
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import evaluate

if __name__ == "__main__":
    run(evaluate, flags=("workdir", "checkpoint", "config", "dry_run"), description=__doc__)
