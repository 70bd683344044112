"""What a trained model must know of its data. A run folder keeps it, so the model needs no prepared data.

<run>/facts.json           hash and schema of the prepared data set
<run>/encoders/<column>/   the column's encoder, as in the prepared data set
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.data.encoders import ENCODERS
from aigc_tf.data.prepared.schema import Schema
from aigc_tf.errors import InputError

FACTS_FILE = "facts.json"
ENCODERS_FOLDER = "encoders"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts of a prepared data set, without its arrays."""

    sha256: str
    """Hash of the prepared data set."""
    schema: Schema
    encoders_folder: str
    """The folder of the encoders, one per column."""
    _loaded: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def encoder(self, column: str) -> Any:
        """Returns the encoder of a column: a `Tokenizer`, a `LabelEncoder`, ... It is loaded once.

        Raises:
            InputError: If it is missing or was changed.
        """
        if column not in self._loaded:
            kind = {known.name: known.encoder for known in self.schema.columns}[column]
            self._loaded[column] = ENCODERS[kind].load(os.path.join(self.encoders_folder, column))
        return self._loaded[column]


def write_facts(workdir: str, facts: DataFacts) -> None:
    """Writes the facts into a run folder, the encoders first."""
    storage.copy_folder(facts.encoders_folder, storage.join(workdir, ENCODERS_FOLDER))
    storage.write_json(
        storage.join(workdir, FACTS_FILE), {"sha256": facts.sha256, "schema": facts.schema.to_json()}
    )


def has_facts(folder: str) -> bool:
    """Whether a folder is a run that keeps facts of its data."""
    return storage.exists(storage.join(folder, FACTS_FILE))


def read_facts(workdir: str) -> DataFacts:
    """Reads what `write_facts` wrote.

    Raises:
        InputError: If facts.json is missing or was not written by this program.
    """
    path = storage.join(workdir, FACTS_FILE)
    content = storage.read_json(path)
    try:
        schema, sha256 = Schema.from_json(content["schema"]), str(content["sha256"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not what scripts/train.py writes ({error}).") from error
    folder = storage.as_local_folder(storage.join(workdir, ENCODERS_FOLDER))
    return DataFacts(sha256=sha256, schema=schema, encoders_folder=str(Path(folder)))
