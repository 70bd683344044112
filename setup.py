"""What aigc_tf needs. constraints.txt pins each package of the core and test install to the version tested with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "aigc_tf/__init__.py").read_text(), re.M)[1]

CORE = [
    "absl-py",  # flags
    "importlib_resources",  # tensorflow-datasets imports it and does not ask for it
    "jinja2",  # the files of a deployment
    "keras>=3.15",
    "keras-nlp==0.32.*",  # KerasHub under its first name: BERT, its presets and their conversion
    "matplotlib",  # confusion matrices
    "ml-collections",  # typed config fields as flags
    "numpy",
    "pyarrow",  # Parquet
    "requests",  # asks a server by REST
    "rich",  # progress and tables
    "safetensors",  # Hugging Face weights; KerasHub imports it and does not ask for it
    "scikit-learn",  # metrics
    "sentencepiece",  # learns vocabularies of text that must come back as it was
    "tenacity",  # asks it again
    "tensorboard",  # not every tensorflow package brings it
    "tensorflow>=2.20,<2.22",
    "tensorflow-datasets",
    "tensorflow-serving-api>=2.20,<2.22",  # messages of the server's config, warm-up files and gRPC
    "tensorflow-text",  # the tokenizer, in the same C++ op when data is prepared and when texts are served
    "tokenizers",  # learns WordPiece vocabularies; GPT-2's byte pairs
]

EXTRAS = {
    # CUDA libraries as pip packages, for a machine that has the driver only.
    "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
    # Ended in 2024, with wheels up to Python 3.11. It imports beside Keras 3 only with TF_USE_LEGACY_KERAS=1 set
    # before TensorFlow is imported, and keras.src.engine.keras_tensor provided from tf_keras; its plain TensorFlow
    # functions (tfa.text.crf_*, tfa.seq2seq.sequence_loss) then work, its compiled ops do not load.
    "addons": [
        "tensorflow-addons==0.23.0; python_version < '3.12'",
        "tf-keras>=2.20,<2.22; python_version < '3.12'",
        "typeguard>=2.7,<3; python_version < '3.12'",
    ],
    # scripts/sweep.py: searches config fields.
    "sweep": ["optuna>=5,<6"],
    # The peers of benchmarks/classifier_reference.py and serve.py, the latter's in an environment of its own: a server.
    "bench": ["fastapi", "torch", "transformers", "uvicorn"],
    "test": [
        "check-jsonschema",  # Compose files
        "import-linter",
        "kubernetes-validate",
        "mypy",
        "optuna>=5,<6",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "pyyaml",
        "ruff",
    ],
    # No extra for TPU: tensorflow-tpu takes the place of tensorflow, which pip cannot express. docs/install.md has it.
}

setup(
    name="aigc_tf",
    version=VERSION,
    description="Train text models on TPU and GPU with TensorFlow and KerasNLP, and serve them with TensorFlow Serving",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["aigc_tf", "aigc_tf.*"]),
    package_data={
        "aigc_tf.serving.deployment": ["deployment_templates/**"],
        "aigc_tf.serving.gate": ["server_ops.json"],
    },
    python_requires=">=3.11,<3.13",
    install_requires=CORE,
    extras_require=EXTRAS,
)
