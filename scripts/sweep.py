"""Searches fields of an experiment: many runs, each with values that Optuna chooses. The same command again resumes.

Example:
  python scripts/sweep.py --config=configs/bert_sentiment.py --workdir=runs/sweep --trials=20 \\
      --search="training.optimizer.learning_rate=log:1e-5..2e-4" --search="training.schedule.name=linear|cosine"
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import sweep

if __name__ == "__main__":
    run(sweep, flags=("config", "workdir", "search", "trials", "dry_run"), description=__doc__)
