"""Writes what serving exported models needs: server, Docker, Kubernetes and alert files, and a README with the runbook.

Example:
  python scripts/render_deployment.py --model=saved_models/bert_sentiment --output=deploy/reviews
"""

from aigc_tf import cli

FLAGS = ("exports", "stable", "canary", "batching", "deployment", "overwrite")

if __name__ == "__main__":
    cli.run(cli.render_deployment, flags=FLAGS, description=__doc__)
