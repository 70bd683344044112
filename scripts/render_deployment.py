"""Writes a folder to serve exported models from: server, Docker, Kubernetes and alert files, and a runbook.

Example:
  python scripts/render_deployment.py --model=saved_models/bert_sentiment --output=deploy/reviews
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import render_deployment

FLAGS = ("exports", "stable", "canary", "batching", "deployment", "overwrite")

if __name__ == "__main__":
    run(render_deployment, flags=FLAGS, description=__doc__)
