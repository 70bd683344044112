"""Publishes a model as `scripts/export.py` does, without a run."""

from aigc_tf.serving.publishing.classifier_servable import classifier_servable
from aigc_tf.serving.publishing.generator_servable import generator_servable
from aigc_tf.serving.publishing.publishing import publish
from aigc_tf.tasks import TASKS


def export_classifier(model, tokenizer, spec, *, directory, name, source=None, **options):
    servable = classifier_servable(model, tokenizer, spec, **options)
    facts = TASKS["classify"].manifest_facts()
    return publish(servable, directory=directory, name=name, task_facts=facts, source=source)


def export_generator(model, tokenizer, *, directory, name, source=None, **options):
    servable = generator_servable(model, tokenizer, **options)
    facts = TASKS["generate"].manifest_facts()
    return publish(servable, directory=directory, name=name, task_facts=facts, source=source)
