"""Wires the rooms: for each task how it trains, exports and answers. Nothing else wires them.

To add a task: a module here with a `TaskDoor`, its entry in `TASKS`, its name in config.TASK_NAMES, a config, a test.
"""

from aigc_tf.tasks import classify, generate
from aigc_tf.tasks.door import DataFacts, TaskDoor, facts_of

TASKS: dict[str, TaskDoor] = {"classify": classify.DOOR, "generate": generate.DOOR}

__all__ = ["TASKS", "DataFacts", "TaskDoor", "facts_of"]
