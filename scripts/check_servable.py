"""Reports what a stock TensorFlow Serving would refuse in a SavedModel, or serve in an unexpected way.

Exit status 0: the server serves it; 1: it does not.

Example:
  python scripts/check_servable.py saved_models/bert_sentiment --target=2.20
"""

from aigc_tf.cli.running import run
from aigc_tf.cli.scripts import check_servable

if __name__ == "__main__":
    run(check_servable, flags=("folder", "target"), description=__doc__)
