"""Shows the examples of a bad step, whose loss was not finite or a spike, as text, the worst first.

Example:
  python scripts/inspect_examples.py --workdir=runs/bert_sentiment --step=120
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import inspect_examples

if __name__ == "__main__":
    run(inspect_examples, flags=("workdir", "step", "config"), description=__doc__)
