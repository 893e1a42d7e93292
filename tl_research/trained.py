"""A finished run as the tools see it: its settings, its images and the model it exported."""

import collections
import contextlib
import dataclasses
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
from tl_research.data.dataset import Dataset
from tl_research.data.pipeline import Examples
from tl_research.data.split import SIDES
from tl_research.errors import DataError, RunDirectoryError, StorageError, UserError
from tl_research.files import make_folders, read_text, storage_errors
from tl_research.models import model_file
from tl_research.models.classifier import folded_logits
from tl_research.run.directory import Directory, RunDirectory, check_kinds, resume_command
from tl_research.run.offline import DATASET, Substitution

_LARGEST_BATCH = 32  # of the programs, unless asked for


class TrainedRun:
    """The directory of a finished run; nothing is written to it here.

    Args:
        path: The directory.

    Attributes:
        path: As given.
        config: The `Config` it was trained with; its `workdir` is the directory.
        results: The contents of `results.json`.
        classes: Names in the order of the labels.
        answer: The kind of `answers.ANSWERS` that it gives.
        temperature: What logits are divided by before they are made probabilities; 1 of runs that
            have none.

    Raises:
        RunDirectoryError: If that is no finished run of this version.
    """

    def __init__(self, path: str):
        self.path = path
        self._check_finished()
        check_kinds("run", path)
        try:
            self.config = dataclasses.replace(
                Config.from_flags(read_text(self.file("flags.txt"))), workdir=path
            )
            self.results = self._read_json("results.json")
            self.classes = _checked_classes(self.results)
            # older runs have none
            self.answer = ANSWERS[self._read_json("run.json").get("answer", "class")]
            self.temperature = self._temperature()
            substitutions = map(Substitution.from_json, self.results["substitutions"])
            self._replaced = [substitution.what for substitution in substitutions]
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
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
                f"--run={self.path} is not finished; expected results.json in it; go on with "
                f"{command}"
            )

    def file(self, *names: str) -> str:
        return os.path.join(self.path, *names)

    def _read_json(self, name):
        return json.loads(read_text(self.file(name)))

    def _temperature(self):
        name = os.path.join("export", "calibration.json")
        if not os.path.isfile(self.file(name)):
            return 1.0
        temperature = self._read_json(name)["temperature"]
        if not (isinstance(temperature, (int, float)) and 0.0 < temperature < math.inf):
            raise ValueError(f"{name}: temperature {temperature!r} is no number above 0")
        return temperature

    def batch_size(self, asked: int | None = None) -> int:
        """Returns how many images a program takes at a time: as asked, or what training had memory
        for.
        """
        return asked or min(self.config.batch_size, _LARGEST_BATCH)

    @contextlib.contextmanager
    def opened(self, output_dir: str | None) -> Iterator[Directory]:
        """Yields the directory that a program writes to: `output_dir`, or that of the run, locked.

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
                f"{received}; expected a run that can be written to; add --output_dir=DIR"
            ) from error
        with directory:
            yield directory

    def load_data(
        self,
        extension: str | None = None,
        sides: Sequence[str] = SIDES,
        data_dir: str | None = None,
    ) -> Dataset:
        """Returns the `Dataset` of the run, on the sides that its `split.json` records.

        Args:
            extension: The file whose `load_catalog` gives the images, if one did.
            sides: Those whose images are wanted; the others are empty.
            data_dir: Where the images are now, if not where they were.

        Raises:
            UserError: If one did and there is none.
            DataError: If the images are not those of the run, or are elsewhere now.
            RunDirectoryError: If there is no `split.json`.
        """
        if not os.path.isfile(self.file("split.json")):
            raise RunDirectoryError(
                f"--run={self.path} has no split.json; expected the one the run wrote; restore it"
            )
        load_catalog = extension_lib.load(extension).load_catalog
        # What is fetched comes from its own host and goes where this user keeps it, whoever made
        # the run.
        config = dataclasses.replace(self.config, download_base_url=None)
        if not catalog.is_there(str(config.dataset), config.download_dir):
            config = dataclasses.replace(config, download_dir=Config().download_dir)
        recorded = self.results.get("extension") or {}
        if "load_catalog" in recorded.get("parts", ()) and not load_catalog:
            raise UserError(
                f"the images of --run={self.path} came from load_catalog of "
                f"{recorded['file'] or 'Python code'}; expected it again; add --extension=FILE",
                "extension",
            )
        if "dataset" in self._replaced:
            config = dataclasses.replace(config, dataset=DATASET)
        if data_dir:
            config = dataclasses.replace(config, data_dir=data_dir)
        try:
            return dataset.load_recorded(config, self.file("split.json"), load_catalog, sides)
        except DataError as error:
            raise DataError(
                f"{error}; if the images were moved, add --data_dir=DIR, or say so once: "
                f"{resume_command(self.path, extension=extension)} --data_dir=DIR"
            ) from error

    def is_of_run(self, folder: str) -> bool:
        """Returns whether an image of the run lies where it would if its images were in `folder`:
        then these are not others of the same classes.
        """
        for entry in manifest.read(self.file("split.json"))["files"]:
            for name in (entry["path"], entry["path"].partition("/")[2]):  # of a side's folder
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    with open(path, "rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]:
                            return True
        return False

    def load_folder(self, folder: str) -> tuple[pipeline.Examples, dict[str, int]]:
        """Returns all images of a folder of class folders, and how many of them are the run's own,
        by side; raises DataError as `dataset.load_labelled` does, and UserError.
        """
        if self.answer.name != "class":
            raise UserError(
                f"--data_dir={folder} with --run={self.path}, whose labels are no classes; "
                "expected the images of the run; leave it out"
            )
        examples = dataset.load_labelled(folder, self.classes, self.config)
        entries = manifest.read(self.file("split.json"))["files"]
        sides = {entry["sha256"]: entry["side"] for entry in entries}
        found = collections.Counter(map(sides.get, examples.sha256s or ()))
        return examples, {side: found[side] for side in SIDES}

    def load_model(self, extension: str | None = None) -> keras.Model:
        """Returns the exported Keras model, which is in float32.

        Args:
            extension: The file that registers layers of the user's, if there are any.

        Raises:
            RunDirectoryError: If it is not there or cannot be read.
        """
        extension_lib.load(extension)
        path = self.file("export", "model.keras")
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
                "exported; give its --extension, if it has layers of yours"
            ) from error

    def load_classifier(self, extension: str | None = None) -> Any:
        """Returns a function from uint8 images [B, S, S, 3] to float32 logits [B, K], a NumPy
        array; the argument is that of `load_model`.
        """
        quiet.drop_retracing_notes()
        logits = folded_logits(self.load_model(extension))
        size = self.config.image_size
        signature = [tf.TensorSpec([None, size, size, 3], tf.uint8)]
        call = tf.function(
            lambda images: logits(tf.cast(images, tf.float32)),
            input_signature=signature,
            autograph=False,  # which takes a second, and does not reach into layers
        )
        return lambda images: call(images).numpy()


def _checked_classes(results):
    """Returns the names of the classes; raises ValueError if they are none."""
    classes = results["classes"]
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"classes {str(classes)[:80]!a} are no names")
    if not isinstance(results["test"]["reads"], int):
        raise ValueError("nobody counted how often the test images were read")
    return tuple(classes)


def predict_logits(classifier: Callable, examples: Examples, batch_size: int) -> np.ndarray:
    """Returns float32 [N, K], what `TrainedRun.load_classifier`'s classifier says to `Examples`."""
    indices, _ = pipeline.make_batches(np.arange(len(examples)), batch_size)
    batches = examples.stream(indices) if examples.pixels is None else map(examples.images, indices)
    return np.concatenate([classifier(images) for images in batches])[: len(examples)]
