"""Reading the JSON files of a run directory, which are not trusted.

Imports no TensorFlow.
"""

import json
import os
from typing import Any

from tl_research.config import Config
from tl_research.errors import CheckpointError
from tl_research.files import Json, read_text

# types of the entries of `run.json` that a resumed run reads
_RECORD = {
    "precision": str,
    "xla": bool,
    "shards": int,
    "substitutions": list,
    "versions": dict,
    "machine": dict,
}


def read_json(path: str) -> Any:
    """Returns the contents of a JSON file, or None if there is none.

    Raises:
        CheckpointError: If it is damaged.
    """
    if not os.path.exists(path):
        return None
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def read_results(path: str) -> Json | None:
    """Returns the contents of `results.json`, or None if there is none.

    Raises:
        CheckpointError: If it is damaged, or cannot be that of a run.
    """
    found = read_json(path)
    if found is None:
        return None
    test = found.get("test") if isinstance(found, dict) else None
    accuracy = test.get("accuracy") if isinstance(test, dict) else ""
    if not isinstance(accuracy, (int, float, type(None))):
        raise _damaged(path, "it has no test accuracy")
    return found


def read_record(path: str) -> Json:
    """Returns the contents of `run.json`, or {} if there is none; raises CheckpointError too."""
    found = read_json(path) or {}
    for name, kind in _RECORD.items():
        if not isinstance(found, dict) or not isinstance(found.get(name, kind()), kind):
            raise _damaged(path, f"{name} is none")
    precisions = Config.__dataclass_fields__["precision"].metadata["choices"]
    if found.get("precision", "auto") not in precisions:
        raise _damaged(path, "its precision is none")
    return found


def _damaged(path, why):
    return CheckpointError(
        f"{path} is damaged ({why}); expected it as the run wrote it; use another --workdir or "
        "--resume=never"
    )
