"""The plan of a run before its first step: parameters, floating-point operations, memory, compilations.

Nothing is run. Model and optimizer are built, the step of one replica is traced, and its graph is examined.
"""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from aigc_tf.config import TrainingConfig
from aigc_tf.data.batching.batches import BatchSource
from aigc_tf.models import freezing
from aigc_tf.training.devices.hardware import DeviceKind, machine_kind
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.optimizers import optimizers
from aigc_tf.training.planning.flops import StepFlops
from aigc_tf.training.planning.liveness import Peak, peak_memory
from aigc_tf.training.step.averages import build_averages, move_averages
from aigc_tf.training.step.traced_step import TracedStep
from aigc_tf.training.step.unchanged import check_unchanged
from aigc_tf.training.task import Task

ASSUMED_UTILISATION = 0.4
"""Share of a device's peak that the estimated time assumes. Not measured; large, well-fed models reach it."""
ACTIVATION_ERROR = 0.15
"""The error of `activations`, from measured peaks (docs/LOG.md)."""
_GRAPH_BYTES_PER_OPERATION = 25_000
"""Memory of the graph in Python and TensorFlow, per operation: 15 to 40 kB were measured (docs/LOG.md)."""
_SCHEDULED_STEPS = 2000
"""Steps whose lengths are looked up; the rest of a longer run is assumed to be like them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one replica in bytes, by part."""

    parameters: int
    slots: int
    """The optimizer's moments and its few counters."""
    averages: int
    """The moving average of the weights, if one is kept."""
    gradients: int
    """All gradients before the update. Part of `activations` if they are alive at its fullest moment."""
    activations: int
    """All tensors alive at the fullest moment of a step at the longest padded length, sums of micro-batches too."""
    graph: int
    """On the host: Python's and TensorFlow's copies of the graph."""

    @property
    def device(self) -> int:
        """The sum that must fit into the memory of the replica's device."""
        return self.parameters + self.slots + self.averages + self.activations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run."""

    trained_parameters: int
    frozen_parameters: int
    step_flops: dict[int, int]
    """FLOPs of one step over all replicas, by padded length."""
    run_flops: float
    compilations: int
    """Number of shapes that XLA compiles the step for; 0 without XLA."""
    memory: Memory
    peak: Peak
    host_bytes: int
    """Memory of this process before the model was built, that is, of TensorFlow itself."""


def plan_run(task: Task, config: TrainingConfig, devices: Devices) -> Plan:
    """Builds what a run would train, and returns its plan.

    Raises:
        InputError: If a forward of the network changes a variable.
        ValueError: If the size of a product is not known before the step runs.
    """
    host = resident_bytes()
    model = task.build_model()
    freezing.freeze(model, config.optimizer.freeze)
    optimizer = optimizers.build_optimizer(config, model.trainable_variables)
    averages = build_averages(model.trainable_variables) if config.optimizer.ema_decay else []
    lengths = [int(length) for length in task.order.bucket_lengths]
    spec = replica_batch(task, devices)

    def update(gradients: list[tf.Tensor], step: tf.Tensor) -> None:
        optimizer.apply(gradients, model.trainable_variables)
        if averages:
            move_averages(averages, model.trainable_variables, decay=config.optimizer.ema_decay, step=step)

    traced = TracedStep(
        model,
        task.losses,
        {name: _slice_of(rows, config.devices.micro_batches) for name, rows in spec.items()},
        update=update,
        blocks=task.blocks(model) if config.devices.recompute else (),
    )
    longest = traced.at(max(lengths))
    peak = peak_memory(longest)
    gradients = variable_bytes(model.trainable_weights)
    # The sums of micro-batches are alive beside the gradients of each.
    sums = gradients if config.devices.micro_batches > 1 else 0
    flops = StepFlops(trace_step(task, model, devices), lengths)  # without the update: some optimizers multiply too
    step_flops = {length: flops(length) * devices.num_replicas for length in lengths}
    is_compiled = config.devices.jit == "on" or devices.static_shapes
    return Plan(
        trained_parameters=count_parameters(model.trainable_weights),
        frozen_parameters=count_parameters(model.non_trainable_weights),
        step_flops=step_flops,
        run_flops=_run_flops(task, config, step_flops),
        compilations=len(lengths) if is_compiled else 0,
        memory=Memory(
            parameters=variable_bytes(model.weights),
            slots=variable_bytes(optimizer.variables),
            averages=variable_bytes(averages),
            gradients=gradients,
            activations=peak.num_bytes + sums,
            graph=_GRAPH_BYTES_PER_OPERATION * len(longest.operations),
        ),
        peak=peak,
        host_bytes=host,
    )


def trace_step(task: Task, model: keras.Model, devices: Devices) -> TracedStep:
    """Traces the step of one replica, up to its gradients, and what the evaluations observe; runs nothing.

    Raises:
        InputError: If a forward of the network changes a variable.
    """
    sources = {evaluation.observe: evaluation.source for evaluation in task.evaluations.values()}
    for observe, source in sources.items():
        observed = tf.function(functools.partial(observe, model))
        check_unchanged(model, observed.get_concrete_function(_batch_of(source, devices)).graph)
    return TracedStep(model, task.losses, replica_batch(task, devices))


def _slice_of(spec: tf.TensorSpec, micro_batches: int) -> tf.TensorSpec:
    """Returns the part of a replica's batch that one forward sees."""
    return tf.TensorSpec([spec.shape[0] // micro_batches, *spec.shape[1:]], spec.dtype)


def replica_batch(task: Task, devices: Devices) -> Mapping[str, tf.TensorSpec]:
    """Returns shapes and types of the training batch of one replica; the length is open where it varies."""
    return _batch_of(task.train, devices)


def _batch_of(source: BatchSource, devices: Devices) -> Mapping[str, tf.TensorSpec]:
    batches = source.dataset(0, first_shard=0, local_shards=1, num_shards=devices.num_replicas)
    spec: Mapping[str, tf.TensorSpec] = batches.element_spec
    return spec


def count_parameters(variables: list[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def variable_bytes(variables: list[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)


def resident_bytes() -> int:
    """Returns the memory of this process, 0 if the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _run_flops(task: Task, config: TrainingConfig, step_flops: dict[int, int]) -> float:
    looked_up = min(config.num_steps, _SCHEDULED_STEPS)
    lengths = collections.Counter(length_of(task.order.batch(step).shape) for step in range(looked_up))
    return sum(step_flops[length] * count for length, count in lengths.items()) * config.num_steps / looked_up


def length_of(shape: Mapping[str, int]) -> int:
    """Returns the padded length of batches of a shape, one of the order's `bucket_lengths`."""
    return next(iter(shape.values()), 1)  # examples without a ragged column have 1


def plan_rows(plan: Plan, config: TrainingConfig, devices: Devices, device: DeviceKind | None) -> dict[str, str]:
    """Returns the plan in words, one line per item.

    Args:
        plan: What `plan_run` returned.
        config: The same as there.
        devices: The same as there.
        device: The device that it should fit. None: this machine.
    """
    memory, flops = plan.memory, plan.step_flops
    shortest, longest = min(flops), max(flops)
    shapes = ", ".join(f"{count_shown(flops[length])} at {length}" for length in dict.fromkeys((shortest, longest)))
    mean = plan.run_flops / config.num_steps
    largest = ", ".join(f"{kind} {bytes_shown(size)}" for kind, size in list(plan.peak.by_operation.items())[:3])
    compiled = f"{plan.compilations}, one for each padded length" if plan.compilations else "none, XLA is off"
    rows = {
        "parameters": f"{plan.trained_parameters + plan.frozen_parameters:,} ({plan.trained_parameters:,} trained)",
        "compilations of the step": compiled,
        "FLOPs of a step": f"{shapes}; {count_shown(mean)} on average, {count_shown(plan.run_flops)} in all",
        "memory: parameters": bytes_shown(memory.parameters),
        "memory: optimizer": bytes_shown(memory.slots),
        "memory: averages": bytes_shown(memory.averages) if memory.averages else "none are kept",
        "memory: gradients": f"{bytes_shown(memory.gradients)}, part of the next line if they are alive then",
        "memory: activations": f"about {bytes_shown(memory.activations)} at the fullest moment of a step of "
        f"{longest} positions (made by {largest}){_saving(config)}",
        "memory: a replica": f"about {bytes_shown(memory.device)}",
    }
    return rows | _fit_rows(plan, devices, device or machine_kind(), mean, config)


def _saving(config: TrainingConfig) -> str:
    parts = [f"in {config.devices.micro_batches} micro-batches"] if config.devices.micro_batches > 1 else []
    parts += ["with blocks computed again"] if config.devices.recompute else []
    return f", {', '.join(parts)}" if parts else ""


def _fit_rows(
    plan: Plan, devices: Devices, device: DeviceKind | None, mean_flops: float, config: TrainingConfig
) -> dict[str, str]:
    memory = plan.memory
    if device is None:  # a CPU: its replicas share the host's memory with the process itself
        needed = plan.host_bytes + memory.graph + memory.device * devices.local_replicas
        own = bytes_shown(plan.host_bytes + memory.graph)
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"fits this host": f"{verdict(needed, memory, there)} (of which {own} for TensorFlow and the graph)"}
    rate = device.rate(config.devices.precision) * devices.num_replicas * ASSUMED_UTILISATION
    hours = mean_flops / rate * config.num_steps / 3600
    return {
        f"fits {device.name}": verdict(memory.device, memory, device.memory_bytes // device.replicas),
        f"time on {device.name}": f"{1000 * mean_flops / rate:,.3g} ms a step, {hours:,.2f} h in all, on "
        f"{devices.num_replicas} of them at {ASSUMED_UTILISATION:.0%} of the peak: an assumption, not a measurement",
    }


def verdict(needed: int, memory: Memory, there: int) -> str:
    """Returns whether `there` bytes hold what is needed, allowing for the error of the estimate."""
    shown = f"{bytes_shown(needed)} of {bytes_shown(there)}"
    error = math.ceil(ACTIVATION_ERROR * memory.activations)
    if needed > there:
        advice = "raise training.devices.micro_batches, set training.devices.recompute, or lower data.max_length"
        return f"no: {shown}; {advice}"
    if needed + error > there:
        return f"perhaps: {shown}, within the error of the estimate"
    return f"yes: {shown}"


def bytes_shown(size: float) -> str:
    """Returns bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"


def count_shown(count: float) -> str:
    """Returns a number of operations with three digits and an SI prefix."""
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:,.3g} Z"
