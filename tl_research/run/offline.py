"""Replacements of images and weights that cannot be reached (`--if_offline=embedded`)."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tl_research.config import Config
from tl_research.errors import CheckpointError, UnreachableError, to_stderr

BACKBONE = "EfficientNetLite0"  # its ImageNet weights are in a package that is installed
DATASET = "drawn_flowers"


@dataclasses.dataclass(frozen=True)
class Substitution:
    """A replacement, as recorded in `run.json` and `results.json`."""

    what: str  # `dataset` or `weights`
    asked: str
    used: str

    @property
    def text(self) -> str:
        """The replacement as text."""
        if self.what == "dataset":
            return f"data set {self.asked} could not be reached; used {self.used} instead"
        return (
            f"{self.asked} could not be reached; used {self.used} with its packaged ImageNet "
            "weights instead"
        )

    @classmethod
    def from_json(cls, value: Any) -> "Substitution":
        """Returns the recorded replacement, which earlier versions recorded as a sentence."""
        if isinstance(value, dict):
            return cls(**value)
        asked, _, rest = value.partition(" could not be reached; used ")
        if asked.startswith("data set "):
            return cls("dataset", asked.removeprefix("data set "), rest.removesuffix(" instead"))
        return cls("weights", asked, BACKBONE)


class Replacements:
    """Replaces what cannot be reached, if allowed.

    Args:
        config: The settings.
        recorded: `substitutions` of `run.json`, which a resumed run keeps; None for a new run.

    Attributes:
        used: The `Substitution`s of this run.
    """

    def __init__(self, config: Config, recorded: list | None):
        self._allowed = config.if_offline == "embedded"
        self._is_resumed = recorded is not None
        try:
            self.used = [Substitution.from_json(value) for value in recorded or ()]
        except (AttributeError, TypeError) as error:
            raise CheckpointError(
                f"run.json is damaged ({error}); expected it as the run wrote it; use "
                "--resume=never"
            ) from error

    def attempt(
        self,
        make: Callable[[Config], Any],
        config: Config,
        substitution: Substitution,
        replacement: Config,
    ) -> Any:
        """Returns make(config), or make(replacement) if something cannot be reached.

        Args:
            make: A function of a `Config`.
            config: The settings that were asked for.
            substitution: The record of the replacement.
            replacement: The settings to use instead.

        Raises:
            UnreachableError: If something cannot be reached and may not be replaced.
        """
        if self._is_resumed:
            if substitution.what not in [used.what for used in self.used]:
                return make(config)
            to_stderr(f"note: {substitution.text}")
            return make(replacement)
        try:
            return make(config)
        except UnreachableError as error:
            if not self._allowed:
                raise
            self.used.append(substitution)
            to_stderr(f"note: {substitution.text} ({error})")
            return make(replacement)
