"""The functions by which the task `classify` enters the commands."""

from aigc_tf.models.classifiers import classifier
from aigc_tf.tasks.classify.asking import classification_answerer
from aigc_tf.tasks.classify.serving import classification_servable, draw_confusions
from aigc_tf.tasks.classify.training import classify, data_warnings
from aigc_tf.tasks.door import TaskDoor

DOOR = TaskDoor(
    build=classify,
    describe=classifier.describe_classifier,
    rebuild=classifier.rebuild_classifier,
    servable=classification_servable,
    answerer=classification_answerer,
    draw=draw_confusions,
    unit="examples",
    rate="examples_per_second",
    data_warnings=data_warnings,
)
