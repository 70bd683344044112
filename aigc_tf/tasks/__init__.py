"""The tasks: for each how it trains, exports and answers. The only place where a task is named.

To add a task: a folder here with a `spec` and a `door`, its entry in `TASKS`, a config, a test, a page in docs.
"""

from aigc_tf.tasks.classify import spec as classify
from aigc_tf.tasks.generate import spec as generate
from aigc_tf.tasks.spec import TaskSpec

TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in (classify.SPEC, generate.SPEC)}

__all__ = ["TASKS", "TaskSpec"]
