"""A finished run for the tools: its settings, its images and its exported model."""

import collections
import contextlib
import dataclasses
import functools
import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tl_research import quiet

quiet.import_tensorflow()

import keras
import numpy as np
import tensorflow as tf

from tl_research import extension as extension_lib
from tl_research.answers import ANSWERS
from tl_research.config import Config
from tl_research.data import catalog, dataset, manifest, pipeline
from tl_research.data.split import SIDES
from tl_research.errors import DataError, RunDirectoryError, StorageError, UserError
from tl_research.files import make_folders, read_text, storage_errors
from tl_research.models import model_file
from tl_research.models.classifier import folded_logits
from tl_research.run.directory import Directory, RunDirectory, check_kinds, resume_command
from tl_research.run.offline import DATASET, Substitution

_LARGEST_BATCH = 32  # default of the tools


class TrainedRun(Directory):
    """The directory of a finished run, read-only.

    Args:
        path: The directory.

    Attributes:
        config: The `Config` of the run; its `workdir` is the directory.
        results: The contents of `results.json`.
        classes: Class names in the order of the labels.
        answer: The kind of answer, from `answers.ANSWERS`.
        temperature: Divides the logits before they become probabilities; 1 if none was fitted.

    Raises:
        RunDirectoryError: If it is not a finished run of this version.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._check_finished()
        check_kinds("run", path)
        try:
            config = Config.from_flags(read_text(self.file("flags.txt")))
            self.config = dataclasses.replace(config, workdir=path)
            self.results = self._read_json("results.json")
            self.classes = _checked_classes(self.results)
            # runs of older versions do not name it
            self.answer = ANSWERS[self._read_json("run.json").get("answer", "class")]
            self.temperature = self._temperature()
            replaced = map(Substitution.from_json, self.results["substitutions"])
            self._replaced = [substitution.what for substitution in replaced]
        except Exception as error:  # a file from anyone can be wrong in every way
            raise RunDirectoryError(
                f"--run={path} cannot be read ({error}); expected a run of this version"
            ) from error

    def _check_finished(self):
        if not os.path.isfile(self.file("flags.txt")):
            seeds = sorted(glob.glob("seed*", root_dir=self.path))
            there = f"one of several seeds, such as --run={self.path}/{seeds[0]}" if seeds else ""
            raise RunDirectoryError(
                f"--run={self.path} is not a run; expected "
                f"{there or 'a directory that train.py made'}; correct it"
            )
        if not os.path.isfile(self.file("results.json")):
            flags = read_text(self.file("flags.txt"))
            extension = re.search(r"^# extension (.+) of SHA-256", flags, re.MULTILINE)
            command = resume_command(self.path, extension=extension and extension[1])
            raise RunDirectoryError(
                f"--run={self.path} is not finished; expected results.json in it; continue it with "
                f"{command}"
            )

    def _read_json(self, name):
        return json.loads(read_text(self.file(name)))

    def _temperature(self):
        name = "export/calibration.json"
        if not os.path.isfile(self.file(name)):
            return 1.0
        temperature = self._read_json(name)["temperature"]
        if not (isinstance(temperature, (int, float)) and 0.0 < temperature < math.inf):
            raise ValueError(f"{name}: temperature {temperature!r} is no number above 0")
        return temperature

    def batch_size(self, asked: int | None = None) -> int:
        """Returns a tool's batch size: `asked`, or by default at most that of training."""
        return asked or min(self.config.batch_size, _LARGEST_BATCH)

    @contextlib.contextmanager
    def opened(self, output_dir: str | None) -> Iterator[Directory]:
        """Yields the directory that a tool writes to: `output_dir`, or that of the run, locked.

        Raises:
            RunDirectoryError: If the run is in use.
            StorageError: If it cannot be written.
        """
        if output_dir:
            with storage_errors(output_dir):
                make_folders(output_dir)
            yield Directory(output_dir)
            return
        try:
            directory = RunDirectory(self.config)
        except StorageError as error:
            received = str(error).partition(";")[0]
            raise StorageError(
                f"{received}; expected a writable run; add --output_dir=DIR"
            ) from error
        with directory:
            yield directory

    def load_data(
        self,
        extension: str | None = None,
        sides: Sequence[str] = SIDES,
        data_dir: str | None = None,
    ) -> dataset.Dataset:
        """Returns the `Dataset` of the run, split as recorded in its `split.json`.

        Args:
            extension: The file whose `load_catalog` provided the images, if one did.
            sides: The sides to load; the others are empty.
            data_dir: Where the images are now, if they were moved.

        Raises:
            UserError: If the extension is missing.
            DataError: If the images are not those of the run, or are not found.
            RunDirectoryError: If there is no `split.json`.
        """
        if not os.path.isfile(self.file("split.json")):
            raise RunDirectoryError(
                f"--run={self.path} has no split.json; expected the one the run wrote; restore it"
            )
        load_catalog = extension_lib.load(extension).load_catalog
        # Downloads come from the original host and go to this user's folder, whoever made the run.
        changed: dict[str, Any] = {"download_base_url": None}
        if not catalog.is_there(self.config):
            changed["download_dir"] = Config().download_dir
        recorded = self.results.get("extension") or {}
        if "load_catalog" in recorded.get("parts", ()) and not load_catalog:
            raise UserError(
                f"the images of --run={self.path} came from load_catalog of "
                f"{recorded['file'] or 'Python code'}; expected it again; add --extension=FILE",
                "extension",
            )
        if "dataset" in self._replaced:
            changed["dataset"] = DATASET
        if data_dir:
            changed["data_dir"] = data_dir
        config = dataclasses.replace(self.config, **changed)
        try:
            return dataset.load_recorded(config, self.file("split.json"), load_catalog, sides)
        except DataError as error:
            raise DataError(
                f"{error}; if the images were moved, add --data_dir=DIR, or say so once: "
                f"{resume_command(self.path, extension=extension)} --data_dir=DIR"
            ) from error

    @functools.cached_property
    def _entries(self):
        """The entries of `split.json`."""
        return manifest.read(self.file("split.json"))["files"]

    def is_of_run(self, folder: str) -> bool:
        """Returns whether `folder` contains an image of the run at its recorded path: it then has
        the run's images, and not others of the same classes.
        """
        for entry in self._entries:
            for name in (entry["path"], entry["path"].partition("/")[2]):  # without the side
                path = f"{folder}/{name}"
                if os.path.isfile(path):
                    with open(path, "rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]:
                            return True
        return False

    def load_folder(self, folder: str) -> tuple[pipeline.Examples, dict[str, int]]:
        """Loads all images of a directory with one folder per class.

        Returns:
            (the images, {side: how many of them are the run's own})

        Raises:
            UserError: If the labels of the run are not classes.
            DataError: As `dataset.load_labelled`.
        """
        if self.answer.name != "class":
            raise UserError(
                f"--data_dir={folder} with --run={self.path}, whose labels are not classes; "
                "expected the images of the run; leave it out"
            )
        examples = dataset.load_labelled(folder, self.classes, self.config)
        sides = {entry["sha256"]: entry["side"] for entry in self._entries}
        found = collections.Counter(map(sides.get, examples.sha256s or ()))
        return examples, {side: found[side] for side in SIDES}

    def load_model(self, extension: str | None = None) -> keras.Model:
        """Returns the exported Keras model, in float32.

        Args:
            extension: The file that registers custom layers, if there are any.

        Raises:
            RunDirectoryError: If it is missing or cannot be read.
        """
        extension_lib.load(extension)
        path = self.file("export/model.keras")
        try:
            model, size = model_file.load(path), self.config.image_size
            for layer in ("preprocessing", "backbone"):
                model.get_layer(layer)
            shapes = (model.input_shape, model.output_shape)
            if shapes != ((None, size, size, 3), (None, len(self.classes))):
                raise ValueError(f"of shapes {shapes}, those of another run")
            return model
        except Exception as error:  # a file from anyone can be wrong in every way
            raise RunDirectoryError(
                f"{path} cannot be loaded ({str(error)[:200]}); expected the model that the run "
                "exported; give its --extension if it has custom layers"
            ) from error

    def load_classifier(self, extension: str | None = None) -> Any:
        """Returns a function from uint8 images [B, S, S, 3] to logits, a float32 array [B, K]; the
        argument is that of `load_model`.
        """
        quiet.drop_retracing_notes()
        logits = folded_logits(self.load_model(extension))
        size = self.config.image_size
        signature = [tf.TensorSpec([None, size, size, 3], tf.uint8)]
        call = tf.function(
            lambda images: logits(tf.cast(images, tf.float32)),
            input_signature=signature,
            autograph=False,  # takes a second, and does not reach into layers
        )
        return lambda images: call(images).numpy()


def _checked_classes(results):
    """Returns the class names; raises ValueError if the results are not valid."""
    classes = results["classes"]
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"classes {str(classes)[:80]!a} are not names")
    if not isinstance(results["test"]["reads"], int):
        raise ValueError("the number of reads of the test images is missing")
    return tuple(classes)


def predict_logits(
    classifier: Callable, examples: pipeline.Examples, batch_size: int
) -> np.ndarray:
    """Returns the logits of all examples, float32 [N, K].

    Args:
        classifier: From `TrainedRun.load_classifier`.
        examples: The N images.
        batch_size: Images at a time.
    """
    indices, _ = pipeline.make_batches(np.arange(len(examples)), batch_size)
    batches = examples.stream(indices) if examples.pixels is None else map(examples.images, indices)
    return np.concatenate([classifier(images) for images in batches])[: len(examples)]
