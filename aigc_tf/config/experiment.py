"""The configuration of one experiment: typed dataclasses.

Standard library only, so that a wrong config is reported before TensorFlow is imported.

A config file builds an `ExperimentConfig`, flags override single fields, `checks.validate` checks the whole; after that
it does not change. Fields are str, int, float, bool or tuples of those, which dotted flags can override. When a run is
resumed, only operational fields may differ.
"""

import dataclasses

PROBLEM_TYPES = ("single_label", "multi_label", "regression")
FORMATS = ("auto", "text", "document", "csv", "tsv", "jsonl", "parquet", "tfrecord")
SPLITS = ("hash", "files", "given")
TOKENIZER_KINDS = ("auto", "wordpiece", "sentencepiece")
TRUNCATIONS = ("head", "tail", "head_tail")
SCHEDULES = ("linear", "cosine", "constant", "inverse_sqrt", "wsd")
OPTIMIZERS = {
    "adamw": ("weight_decay", "beta_1", "beta_2", "epsilon"),
    "adam": ("beta_1", "beta_2", "epsilon"),
    "sgd": ("weight_decay", "momentum"),
    "rmsprop": ("weight_decay", "epsilon"),
    "lamb": ("weight_decay", "beta_1", "beta_2", "epsilon"),
    "adafactor": ("weight_decay",),
    "lion": ("weight_decay", "beta_1", "beta_2"),
    "muon": ("weight_decay", "momentum", "beta_1", "beta_2", "epsilon"),
}
"""The fields of `OptimizerConfig` that each optimizer reads, besides the learning rate."""
PRECISIONS = ("auto", "float32", "bfloat16")
STRATEGIES = ("auto", "none", "mirrored", "multi_worker", "tpu")
JIT_MODES = ("auto", "on", "off")
BAD_STEP_POLICIES = ("stop", "skip", "rollback")
WEIGHT_KINDS = ("auto", "raw", "averaged")
ADAPTER_KINDS = ("lora", "prefix")
LONG_PROMPTS = ("cut", "refuse")
STORED_WEIGHTS = ("float32", "bfloat16", "int8")
SERVERS = ("2.19", "2.20", "2.21")
"""Versions of TensorFlow Serving that an export can be checked for."""


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Where the text comes from, what its columns mean, and how it becomes token ids."""

    sources: tuple[str, ...] = ()
    """Files, globs or folders, `sample:NAME`, or `tfds:NAME[/CONFIG][:VERSION]`."""
    validation_sources: tuple[str, ...] = ()
    """With split `given`: the sources of the validation split. Empty: chosen from `sources` by the hash rule."""
    test_sources: tuple[str, ...] = ()
    """With split `given`: the sources of the test split. TFDS data sets have their own named splits."""
    format: str = "auto"
    """One of `FORMATS`; `auto` chooses by the file's suffix (before .gz). `document`: a file is one
    text, whereas `text` makes each of its lines one."""
    column_names: tuple[str, ...] = ()
    """Names of the columns of CSV and TSV files that have no header line. Empty: the first line is the header."""
    text_column: str = "text"
    """Column of the text."""
    text_b_column: str = ""
    """Column of the second text of a pair; for a generator that of the response to the prompt in `text_column`; the
    generator learns only the response. Empty: single texts."""
    label_column: str = "label"
    """Column of the label; with multi_label several, separated by `label_separator` or a JSON list."""
    problem_type: str = "single_label"
    """One of `PROBLEM_TYPES`."""
    label_names: tuple[str, ...] = ()
    """Allowed labels; a row with another is broken. Empty: those found. With `label_thresholds`: a name per range."""
    label_separator: str = "|"
    """Separator of the labels in a multi_label row."""
    label_thresholds: tuple[float, ...] = ()
    """Ascending cuts that turn a numeric column into classes: class i lies above i of them (`value > cut`)."""
    label_margin: float = 0.0
    """Rows whose number is closer than this to a threshold are left out, and counted."""
    encoding: str = "utf-8"
    """Encoding of the source files."""
    drop_duplicates: bool = False
    """Leave out repeated texts, and all texts that have two different labels."""
    max_bad_share: float = 0.01
    """Share of broken rows, in [0, 1], above which preparing stops instead of leaving them out."""
    split: str = "hash"
    """One of `SPLITS`: by hash of the text, by named files, or by the sources' own splits."""
    validation_files: tuple[str, ...] = ()
    """With split `files`: globs on the file names of the validation split. Empty: by the hash rule."""
    test_files: tuple[str, ...] = ()
    """With split `files`: globs on the file names of the test split."""
    licence: str = ""
    """Licence of the sources, recorded in the data set's ledger."""
    prepared_dir: str = "prepared"
    """Folder of prepared data sets; this experiment's lies in `<prepared_dir>/<name>`."""
    tfds_data_dir: str = ""
    """Folder of TFDS data sets. Empty: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    tfds_download: bool = False
    """Let TFDS download a data set that is not on disk."""
    max_length: int = 128
    """Tokens of one example, special tokens included; longer ones are truncated when batches are made. For a generator
    the length of the windows it is trained on, which is the length of its context."""
    truncation: str = "head"
    """One of `TRUNCATIONS`: which tokens of a too long text are kept."""
    num_buckets: int = 0
    """Number of padded lengths. 0: 8 if each shape costs a compilation, else 32."""
    bucket_run_length: int = 1
    """Consecutive steps of one padded length. On a TPU, where a call runs steps of one shape, use `steps_per_call`."""
    packing: bool = False
    """Train on rows of `max_length` tokens that hold several examples each, none of which sees another. For a generator
    they replace the windows; longer documents are cut. BERT and GPT-2 only."""


@dataclasses.dataclass(kw_only=True)
class TokenizerConfig:
    """Which vocabulary splits text into token ids."""

    source: str = ""
    """`train`, a vocabulary file, a Hugging Face folder, a KerasNLP preset, `sample:NAME`. Empty: the model's own."""
    kind: str = "auto"
    """With source `train`, one of `TOKENIZER_KINDS`; `auto` is the task's default."""
    vocabulary_size: int = 30522
    """With source `train`: entries of the vocabulary, special tokens included."""
    lowercase: bool = True
    """WordPiece with source `train` or a vocabulary file: lower-case and strip accents, as BERT's uncased models do."""


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """The network and its initial weights."""

    source: str = ""
    """A KerasNLP preset (name or folder), a Hugging Face folder, `sample:NAME`, a run folder. Empty: random weights."""
    dropout: float = 0.1
    """Dropout before the classification head, and in the whole network if it starts from random weights."""
    num_layers: int = 6
    """Random weights only: transformer layers."""
    hidden_dim: int = 384
    """Random weights only: width; a multiple of `num_heads`."""
    num_heads: int = 12
    """Random weights only: attention heads."""
    intermediate_dim: int = 1536
    """Random weights only: width of the feed-forward layer."""


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """How a gradient becomes an update of the weights."""

    name: str = "adamw"
    """A key of `OPTIMIZERS`, which lists the other fields it reads."""
    learning_rate: float = 5e-5
    """Peak rate, reached after warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay; variables of one axis, biases and normalisation weights, are excluded. Adam has none."""
    beta_1: float = 0.9
    """Decay of the first moment (AdamW, Adam, LAMB, Lion, Muon's AdamW), in [0, 1)."""
    beta_2: float = 0.999
    """Decay of the second moment (the same), in [0, 1). Lion's authors take 0.99."""
    epsilon: float = 1e-8
    """Keeps the second moment from 0 (AdamW, Adam, RMSprop, LAMB, Muon's AdamW)."""
    momentum: float = 0.9
    """Decay of the momentum of SGD and Muon, in [0, 1). Muon's author takes 0.95."""
    clip_norm: float = 1.0
    """Global norm to which the gradient is clipped. 0: no clipping."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer to the one below, in (0, 1]; the head has the full rate. 1: one rate."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, in [0, 1), such as 0.999. 0: none is kept."""
    freeze: tuple[str, ...] = ()
    """Globs on paths of weights that keep their values, such as `embeddings/*` or `transformer_layer_[0-3]/*`."""


@dataclasses.dataclass(kw_only=True)
class ScheduleConfig:
    """How the learning rate changes over the steps."""

    name: str = "linear"
    """One of `SCHEDULES`: what the rate does after warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    decay_steps: int = 0
    """Schedule wsd: the last steps, over which the rate falls in a line. 0: a tenth of the run."""
    final_rate_share: float = 0.0
    """Share of the peak rate to which linear, cosine and wsd fall, in [0, 1]."""


@dataclasses.dataclass(kw_only=True)
class LossConfig:
    """Regularisation and weights of the loss."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator in the loss. PaLM's authors take 1e-4. 0: none."""
    class_weights: tuple[float, ...] = ()
    """One loss weight per label, in the sorted order of the labels. Empty: 1 each."""
    balance_classes: bool = False
    """Weight the classes by n / (num_classes * count), as scikit-learn's `balanced` does."""


@dataclasses.dataclass(kw_only=True)
class DevicesConfig:
    """Where and how precisely the steps are computed."""

    precision: str = "auto"
    """One of `PRECISIONS`; `auto` is bfloat16 (mixed) if the hardware multiplies it, else float32."""
    jit: str = "auto"
    """One of `JIT_MODES`: compile forward and backward with XLA; `auto` is on for GPU and TPU, off for CPU."""
    strategy: str = "auto"
    """One of `STRATEGIES`; `auto`: multi_worker under TF_CONFIG, tpu on a TPU, mirrored on several GPUs, else none."""
    deterministic: bool = False
    """Make every op deterministic on GPU; on CPU they always are."""
    steps_per_call: int = 10
    """Steps per call into the graph. Calls end early at the steps of the intervals below."""
    micro_batches: int = 1
    """Parts into which each replica's rows are split (gradient accumulation): less memory, the same
    result."""
    recompute: bool = False
    """Compute the network's blocks again in the backward pass instead of keeping their activations: less memory."""
    workers_timeout: int = 600
    """Seconds that a worker waits at the start until all others are up."""


@dataclasses.dataclass(kw_only=True)
class BadStepsConfig:
    """The handling of a loss or gradient that is not finite, and of a spike of the loss."""

    policy: str = "stop"
    """One of `BAD_STEP_POLICIES`: what happens at a loss or gradient that is not finite, or a spike of the loss."""
    spike_threshold: float = 0.0
    """A loss this many standard deviations above its running mean is a spike. 0: spikes are not detected."""
    rollback_batches: int = 1
    """With policy `rollback`: batches left out from then on, the bad one and those right before it."""


@dataclasses.dataclass(kw_only=True)
class RecordingConfig:
    """What a run records while it trains."""

    log_every: int = 10
    """Steps between two records in TensorBoard and the progress bar; metrics.jsonl has every step."""
    log_example_ids: bool = False
    """Write which examples each step saw to example_ids.jsonl."""
    profile_steps: tuple[int, ...] = ()
    """First and last step, counted from 1, that TensorFlow's profiler records; calls end there. Empty: none."""
    histograms_every: int = 0
    """Steps between two histograms of every trained weight in TensorBoard; calls end there. 0: none."""


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    """How long a run trains, and when it is evaluated and saved."""

    num_steps: int = 1000
    """Optimizer steps of the whole run."""
    global_batch_size: int = 32
    """Examples of one step over all workers and replicas; for a generator, and with `data.packing`, rows of
    `data.max_length` tokens."""
    seed: int = 0
    """Seed of order, dropout and random weights."""
    checkpoint_every: int = 500
    """Steps between two checkpoints. The last step always has one."""
    evaluate_every: int = 500
    """Steps between two evaluations on the validation split. 0: only at the end."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without an improvement. 0: never."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    devices: DevicesConfig = dataclasses.field(default_factory=DevicesConfig)
    bad_steps: BadStepsConfig = dataclasses.field(default_factory=BadStepsConfig)
    recording: RecordingConfig = dataclasses.field(default_factory=RecordingConfig)


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """How a model is evaluated."""

    batch_size: int = 64
    """Examples of one evaluation batch over all workers and replicas."""
    best_metric: str = "auto"
    """Metric of the validation split that chooses the best checkpoint; `auto`: accuracy, micro_f1 or mse by problem,
    for a generator loss."""
    weights: str = "auto"
    """One of `WEIGHT_KINDS`: which weights are evaluated, exported and asked; `auto`: averaged if
    training.optimizer.ema_decay is set."""
    sample_prompts: tuple[str, ...] = ("",)
    """Generators: prompts that are continued after each evaluation, for people to read. Empty: none."""


@dataclasses.dataclass(kw_only=True)
class GenerationConfig:
    """Default settings of generated text: in samples, in scripts/generate.py, on a server."""

    max_new_tokens: int = 128
    """Longest continuation; it ends earlier at an end of text, a stop string, or when the context is full."""
    temperature: float = 1.0
    """Divides the logits. 0: always the likeliest token."""
    top_k: int = 0
    """Draw from this many likeliest tokens. 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this share of the probability, in (0, 1]."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the likeliest one's probability, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that already occur, and multiplies negative ones. 1: none."""
    stop: tuple[str, ...] = ()
    """Text before which a continuation ends."""
    num_beams: int = 1
    """More than 1: beam search, without random draws."""
    seed: int = 0
    """Row i of a batch uses the seed `seed + i`."""


@dataclasses.dataclass(kw_only=True)
class ExportConfig:
    """The SavedModel."""

    directory: str = "saved_models"
    """The model goes to `<directory>/<name>/<version>`."""
    dtype: str = "float32"
    """Data type in which the exported model computes: float32 or bfloat16."""
    long_prompt: str = "cut"
    """One of `LONG_PROMPTS`: what a generator does with a prompt of data.max_length tokens or more: `cut` off its
    beginning, or `refuse` that row alone."""
    weights: str = "float32"
    """One of `STORED_WEIGHTS`: data type in which the exported model's weights are stored."""
    target: str = "2.20"
    """One of `SERVERS`: the oldest TensorFlow Serving that must load the model."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    """Rows of the requests that the server warms up with, ascending; a rendered deployment allows batches of these
    sizes."""


@dataclasses.dataclass(kw_only=True)
class AdapterConfig:
    """A few new weights that train instead of the model's own."""

    enabled: bool = False
    """Train only an adapter and a classifier's head; all other weights stay those of `model.source`."""
    kind: str = "lora"
    """One of `ADAPTER_KINDS`: low-rank updates of kernels, or learned keys and values before every text (GPT-2)."""
    rank: int = 8
    """lora: rank of the update of each kernel."""
    alpha: float = 16.0
    """lora: the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """lora: globs on paths of kernels. Empty: those of queries and values; GPT-2 has keys in the same kernel."""
    prefix_length: int = 16
    """prefix: learned positions before the first."""
    source: str = ""
    """Folder of a saved adapter, which an export writes beside its formats, to start from. Empty: a new one."""


@dataclasses.dataclass(kw_only=True)
class ExperimentConfig:
    """One experiment. `name` names its prepared data and its exported model."""

    name: str = ""
    """Letters, digits, `_`, `-` and `.`, at most 100 bytes; it becomes a folder and part of a server's URL."""
    task: str = ""
    """A key of `tasks.TASKS`."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)


# Fields that change how a run is watched, kept or spread over machines, not what it computes (docs/config.md).
OPERATIONAL_FIELDS = frozenset(
    {
        "data.prepared_dir",
        "data.tfds_data_dir",
        "data.tfds_download",
        "training.devices.jit",
        "training.devices.strategy",
        "training.devices.steps_per_call",
        "training.recording.log_every",
        "training.checkpoint_every",
        "training.evaluate_every",
        "training.devices.micro_batches",
        "training.devices.recompute",
        "training.bad_steps.policy",
        "training.bad_steps.spike_threshold",
        "training.bad_steps.rollback_batches",
        "training.recording.log_example_ids",
        "training.recording.profile_steps",
        "training.recording.histograms_every",
        "training.devices.workers_timeout",
        "evaluation.batch_size",
        "evaluation.sample_prompts",
        "export.directory",
        "export.dtype",
        "export.long_prompt",
        "export.target",
        "export.batch_sizes",
        "export.weights",
    }
    | {f"generation.{field.name}" for field in dataclasses.fields(GenerationConfig)}
)

# Fields that hold paths, or may hold one: a source can also be a preset's name or sample:NAME.
PATH_FIELDS = frozenset(
    {
        "data.sources",
        "data.validation_sources",
        "data.test_sources",
        "data.prepared_dir",
        "data.tfds_data_dir",
        "tokenizer.source",
        "model.source",
        "export.directory",
        "adapter.source",
    }
)
