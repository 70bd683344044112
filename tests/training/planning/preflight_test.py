"""What a run would take is told without running it."""

import dataclasses

import pytest

from aigc_tf.data.batching.order import POSITIONS
from aigc_tf.training import run_state
from aigc_tf.training.devices.hardware import named_device
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.planning import preflight
from aigc_tf.training.planning.preflight import Memory, bytes_shown, count_shown, plan_rows, plan_run, verdict
from tests import tiny_task
from tests.training_fields import training_with

GIB = 2**30


@pytest.fixture(scope="module")
def planned():
    config = tiny_task.training_config()
    task = tiny_task.tiny_task(config, dropout=0.1)
    return task, config, plan_run(task, config, build_devices("none"))


def test_parameters_slots_and_gradients_are_those_of_the_run(planned):
    task, config, plan = planned
    state = run_state.build_state(task, config, build_devices("none"))
    sizes = [variable.numpy().nbytes for variable in state.model.weights]
    assert plan.memory.parameters == sum(sizes)
    assert plan.memory.gradients == sum(sizes)
    assert plan.memory.slots == sum(variable.numpy().nbytes for variable in state.optimizer.variables)
    assert plan.trained_parameters == state.model.count_params()
    assert plan.frozen_parameters == 0


def test_what_is_frozen_has_neither_gradients_nor_slots(planned):
    task, config, plan = planned

    def frozen():
        model = tiny_task.build_model()
        model.backbone.trainable = False
        return model

    other = plan_run(dataclasses.replace(task, build_model=frozen), config, build_devices("none"))
    assert other.trained_parameters + other.frozen_parameters == plan.trained_parameters
    assert other.trained_parameters == 16 * 2 + 2
    assert other.memory.gradients == 4 * (16 * 2 + 2)
    assert other.memory.parameters == plan.memory.parameters
    assert other.memory.activations < plan.memory.activations


def test_flops_of_the_run_are_those_of_its_steps(planned):
    task, config, plan = planned
    lengths = [task.order.batch(step).shape[POSITIONS] for step in range(config.num_steps)]
    assert set(plan.step_flops) == {int(length) for length in task.order.bucket_lengths}
    assert plan.run_flops == sum(plan.step_flops[length] for length in lengths)
    assert sorted(plan.step_flops.values()) == list(plan.step_flops.values())  # longer ones take more


def test_two_replicas_take_half_of_the_rows_each_and_each_padded_length_is_a_compilation_under_xla(planned):
    task, config, plan = planned
    two = plan_run(task, training_with(config, jit="on"), build_devices("mirrored"))
    assert two.step_flops == plan.step_flops
    assert two.memory.parameters == plan.memory.parameters
    assert two.memory.activations < plan.memory.activations
    assert plan.compilations == 0
    assert two.compilations == len(task.order.bucket_lengths) > 1


def test_micro_batches_recomputation_and_averages_change_the_memory_and_not_the_flops(planned):
    task, config, plan = planned
    task = dataclasses.replace(task, blocks=lambda model: model.backbone.transformer_layers)
    changed = training_with(config, micro_batches=4, recompute=True, ema_decay=0.9)
    saving = plan_run(task, changed, build_devices("none"))
    assert saving.step_flops == plan.step_flops
    assert saving.memory.averages == saving.memory.gradients == plan.memory.gradients
    assert saving.memory.device - saving.memory.averages < plan.memory.device
    rows = plan_rows(saving, changed, build_devices("none"), None)
    assert rows["memory: activations"].endswith(", in 4 micro-batches, with blocks computed again")


def test_the_words_name_every_part_and_whether_a_device_fits(planned):
    _, config, plan = planned
    rows = plan_rows(plan, config, build_devices("none"), named_device("H100"))
    assert rows["parameters"] == f"{plan.trained_parameters:,} ({plan.trained_parameters:,} trained)"
    assert rows["fits H100"].startswith("yes: ")
    assert "an assumption, not a measurement" in rows["time on H100"]
    assert {"memory: parameters", "memory: optimizer", "memory: gradients", "memory: activations"} <= set(rows)
    here = plan_rows(plan, config, build_devices("none"), None)
    assert here["fits this host"].startswith("yes: ")
    assert not [name for name in here if name.startswith("time")]


def test_a_verdict_knows_how_exact_the_estimate_is():
    memory = Memory(parameters=GIB, slots=2 * GIB, averages=0, gradients=GIB, activations=10 * GIB, graph=0)
    assert memory.device == 13 * GIB
    assert verdict(memory.device, memory, 16 * GIB) == "yes: 13.00 GiB of 16.00 GiB"
    assert verdict(memory.device, memory, 14 * GIB).startswith("perhaps: 13.00 GiB of 14.00 GiB")
    assert verdict(memory.device, memory, 12 * GIB).startswith(
        "no: 13.00 GiB of 12.00 GiB; raise training.devices.micro_batches"
    )


def test_numbers_are_shown_in_units_that_people_read():
    assert [bytes_shown(size) for size in (0, 1023, 1536, 3 * 2**20, 5 * GIB)] == [
        "0 B",
        "1,023 B",
        "1.5 KiB",
        "3.0 MiB",
        "5.00 GiB",
    ]
    assert [count_shown(count) for count in (0, 999, 1000, 999_600, 12_345_678, 4.5e21)] == [
        "0",
        "999",
        "1 k",
        "1 M",
        "12.3 M",
        "4.5 Z",
    ]


def test_of_a_long_run_the_rest_is_taken_to_be_like_its_first_steps(planned, monkeypatch):
    task, config, plan = planned
    monkeypatch.setattr(preflight, "_SCHEDULED_STEPS", 6)
    first = sum(plan.step_flops[task.order.batch(step).shape[POSITIONS]] for step in range(6))
    assert preflight._run_flops(task, config, plan.step_flops) == 2 * first
