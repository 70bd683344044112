"""Publishes a run's weights as a SavedModel that takes text, with a report that it answers as the run does.

Example:
  python scripts/export.py --workdir=runs/bert_sentiment
"""

from aigc_tf import cli

if __name__ == "__main__":
    cli.run(cli.export, flags=("workdir", "checkpoint", "config", "dry_run"), description=__doc__)
