"""Writes the adapter of an exported model as one of its other formats."""

from pathlib import Path

import keras

from aigc_tf.models.adapters.adapters import adapter_of, save_adapter


def write_adapter(model: keras.Model, folder: Path) -> list[str]:
    """Writes a model's adapter, if it has one, as a folder beside the other formats; returns its name."""
    if adapter_of(model) is None:
        return []
    (folder / "adapter").mkdir()
    save_adapter(model, folder / "adapter")
    return ["adapter"]
