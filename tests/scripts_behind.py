"""The functions behind the scripts, by the scripts' names."""

from aigc_tf.commands.evaluate import evaluate
from aigc_tf.commands.export import export
from aigc_tf.commands.inspect_examples import inspect_examples
from aigc_tf.commands.train import train
from aigc_tf.data.preparing.preparation import prepare

__all__ = ["evaluate", "export", "inspect_examples", "prepare", "train"]
