"""The functions behind the scripts, by the scripts' names."""

from aigc_tf.commands.evaluate import evaluate
from aigc_tf.commands.export import export
from aigc_tf.commands.inspect_examples import inspect_examples
from aigc_tf.commands.prepare import prepare
from aigc_tf.commands.train import train

__all__ = ["evaluate", "export", "inspect_examples", "prepare", "train"]
