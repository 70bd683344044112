"""The functions by which the task `classify` enters the commands."""

from aigc_tf.models.classifiers import classifier
from aigc_tf.tasks.classify.serving import answer_classification, draw_confusions, export_classification
from aigc_tf.tasks.classify.training import classify
from aigc_tf.tasks.door import TaskDoor

DOOR = TaskDoor(
    build=classify,
    describe=classifier.describe_classifier,
    rebuild=classifier.rebuild_classifier,
    export=export_classification,
    answer=answer_classification,
    draw=draw_confusions,
    ask_script="predict.py --text",
    unit="examples",
    rate="examples_per_second",
)
