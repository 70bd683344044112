"""Shows the examples of a bad step of a run, whose loss was not finite or a spike, as text, the worst first.

Example:
  python scripts/inspect_examples.py --workdir=runs/bert_sentiment --step=120
"""

from aigc_tf import cli

if __name__ == "__main__":
    cli.run(cli.inspect_examples, flags=("workdir", "step", "config"), description=__doc__)
