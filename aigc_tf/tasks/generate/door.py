"""The functions by which the task `generate` enters the commands."""

from aigc_tf.models.generators import generator
from aigc_tf.tasks.door import TaskDoor
from aigc_tf.tasks.generate.asking import generation_answerer
from aigc_tf.tasks.generate.serving import generation_servable
from aigc_tf.tasks.generate.training import data_warnings, generate

DOOR = TaskDoor(
    build=generate,
    describe=generator.describe_generator,
    rebuild=generator.rebuild_generator,
    servable=generation_servable,
    answerer=generation_answerer,
    draw=lambda metrics, facts: {},
    unit="windows",
    rate="tokens_per_second",
    data_warnings=data_warnings,
)
