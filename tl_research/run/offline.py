"""What replaces images and weights that cannot be reached (`--if_offline=embedded`)."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from tl_research.config import Config
from tl_research.errors import CheckpointError, UnreachableError

BACKBONE = "EfficientNetLite0"  # its ImageNet weights come in a package
DATASET = "drawn_flowers"


@dataclasses.dataclass(frozen=True)
class Substitution:
    """One replacement, as `run.json` and `results.json` record it."""

    what: str  # `dataset` or `weights`
    asked: str  # for these
    used: str

    @property
    def text(self) -> str:
        """What a person reads of it."""
        if self.what == "dataset":
            return f"data set {self.asked} could not be reached; used {self.used} instead"
        return (
            f"{self.asked} could not be reached; used {self.used} with its packaged ImageNet "
            "weights instead"
        )

    @classmethod
    def from_json(cls, value: Any) -> "Substitution":
        """Returns what was recorded, also by versions that recorded a sentence."""
        if isinstance(value, dict):
            return cls(**value)
        asked, _, rest = value.partition(" could not be reached; used ")
        if asked.startswith("data set "):
            return cls("dataset", asked.removeprefix("data set "), rest.removesuffix(" instead"))
        return cls("weights", asked, BACKBONE)


class Replacements:
    """Replaces what cannot be reached, if that is allowed.

    Args:
        config: `tl_research.config.Config`.
        recorded: `substitutions` of `run.json` where a run is resumed, which goes on with what it
            began with; None in a new one.

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
                f"run.json is damaged ({error}); expected what a run wrote; use --resume=never"
            ) from error

    def attempt(
        self,
        make: Callable[[Config], Any],
        config: Config,
        substitution: Substitution,
        replacement: Config,
    ) -> Any:
        """Returns make(config), or make(replacement) where what that needs is not reached.

        Args:
            make: A function of a `Config`.
            config: What is asked for.
            substitution: What is recorded if it is replaced.
            replacement: The `Config` of what is used instead.

        Raises:
            UnreachableError: If it cannot be reached and must not be replaced.
        """
        if self._is_resumed:
            replaced = substitution.what in [used.what for used in self.used]
            return make(replacement if replaced else config)
        try:
            return make(config)
        except UnreachableError as error:
            if not self._allowed:
                raise
            self.used.append(substitution)
            print(f"note: {substitution.text} ({error})", file=sys.stderr, flush=True)
            return make(replacement)
