"""Named, disjoint, complete groups of trainable variables with their learning-rate multipliers."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import keras

from tl_research.config import Config
from tl_research.errors import UserError, suggestion


# eq=False: `==` of two keras.Variable is elementwise
@dataclasses.dataclass(frozen=True, eq=False)
class ParamGroup:
    """Variables that share one learning rate and one step count.

    Attributes:
        name: Unique in its phase; part of TensorBoard tags such as `learning_rate/<name>`.
        paths: `backbone/<layer>/<variable>` or `head/<variable>`, one per variable.
        variables: The variables, in the order of `paths`.
        lr_multiplier: Factor on the base learning rate, no unit, > 0.
    """

    name: str
    paths: tuple[str, ...]
    variables: tuple[keras.Variable, ...]
    lr_multiplier: float


def make_param_groups(
    named_variables: Mapping[str, keras.Variable],
    blocks: Mapping[str, tuple[int, str]],
    all_paths: Sequence[str],
    config: Config,
    joined: Mapping[str, str] | None = None,
) -> list[ParamGroup]:
    """Returns the groups of one phase, from input to output, the head last.

    A variable's multiplier is the product of `--backbone_lr_multiplier` (backbone only), the layer
    decay of its block and the value of the pattern of `--lr_multiplier` that matches it. Layer
    decay d gives the head 1, the last block d, the block before it d^2, down to the first block,
    frozen or not (Clark et al. 2020, arXiv:2003.10555, appendix B; Howard & Ruder 2018,
    arXiv:1801.06146, section 3.2, where each layer decays).

    Groups are named `head`, `backbone` or, with layer decay, `backbone/<block name>`. Variables
    that a pattern matches form a group `<name>[<pattern>]`, those that joined in a later phase than
    the rest `<name>@<phase>`: a Keras optimizer has one step count, which Adam's bias correction
    uses.

    Args:
        named_variables: {path: keras.Variable} of the variables that are trainable now.
        blocks: {path: (block index from 0 at the input, block name)} of all backbone variables,
            frozen ones too. Used only with layer decay.
        all_paths: Paths of all variables, frozen ones too, so that a pattern is valid in all phases
            or in none.
        config: The settings; patterns are split at the last `=` and searched (`re.search`) in the
            paths.
        joined: {path: phase since which the variable has been trainable}, in order of joining; None
            in the first phase.

    Returns:
        List of `ParamGroup`s; every variable of `named_variables` is in exactly one.

    Raises:
        UserError: If a `--lr_multiplier` is not `REGEX=VALUE` with a finite number > 0, or its
            pattern is not a regular expression, matches no variable, or matches one that another
            pattern matches too.
        ValueError: If a path begins with neither `backbone/` nor `head/`, or lacks a block or a
            joining phase.
    """
    matches = _match_patterns(config.lr_multiplier, all_paths)
    joined = joined or dict.fromkeys(named_variables, "")
    phases = list(dict.fromkeys(joined.values()))
    members = collections.defaultdict(list)
    for path in named_variables:
        position, name, multiplier = _place(path, blocks, config)
        rank, pattern, value = matches.get(path, (-1, None, 1.0))
        if path not in joined:
            raise ValueError(
                f"{path!r} has no joining phase. Add it to `joined` when it becomes trainable."
            )
        phase = phases.index(joined[path])
        name += f"[{pattern}]" if pattern is not None else ""
        members[(position, rank, phase, name, multiplier * value)].append(path)

    groups, plain = [], set()
    for (position, rank, phase, name, multiplier), paths in sorted(members.items()):
        if (position, rank) in plain:  # an earlier phase's group has the plain name
            name = f"{name}@{phases[phase]}"
        plain.add((position, rank))
        variables = tuple(named_variables[path] for path in paths)
        groups.append(ParamGroup(name, tuple(paths), variables, multiplier))
    return groups


def _place(path, blocks, config):
    """Returns (position of a variable's group from input to output, name, multiplier), without
    patterns.
    """
    if path.startswith("head/"):
        return math.inf, "head", 1.0
    if not path.startswith("backbone/"):
        raise ValueError(
            f"Received the path {path!r}. Expected backbone/<layer>/<variable> or head/<variable>."
        )
    whole = config.backbone_lr_multiplier
    if config.layer_decay == 1.0:
        return 0, "backbone", whole
    if path not in blocks:
        raise ValueError(
            f"{path!r} is in no block. Layer decay needs one for each backbone variable."
        )
    position, name = blocks[path]
    above = max(index for index, _ in blocks.values()) - position
    return position, f"backbone/{name}", whole * config.layer_decay ** (above + 1)


def _match_patterns(settings, all_paths):
    """Returns {path: (rank, pattern, value)} of the one setting that matches it."""
    matches = {}
    for rank, setting in enumerate(settings):
        flag = f"--lr_multiplier={setting}"
        pattern, value = _parsed(setting, flag)
        for path in _matched(pattern, flag, all_paths):
            if path in matches:
                raise UserError(
                    f"{flag}: {path!r} is matched by {matches[path][1]!r} and by {pattern!r}; "
                    "expected at most one pattern per variable; make one of them narrower."
                )
            matches[path] = (rank, pattern, value)
    return matches


def _parsed(setting, flag):
    """Returns (pattern, value) of a setting."""
    pattern, _, text = setting.rpartition("=")
    if not pattern:
        raise UserError(f"{flag}: received no pattern; expected REGEX=VALUE; for example head/=10.")
    try:
        value = float(text)
    except ValueError:
        raise UserError(
            f"{flag}: received the value {text!r}; expected REGEX=VALUE with a finite number "
            "> 0 after the last '='; try 0.1."
        ) from None
    if not 0 < value < math.inf:
        remedy = "try 0.1" if value else "use --unfreeze to freeze instead"
        raise UserError(
            f"{flag}: received a multiplier of {value:g}; expected a finite number > 0; {remedy}"
        )
    return pattern, value


def _matched(pattern, flag, all_paths):
    """Returns the paths that a pattern is found in."""
    try:
        matched = [path for path in all_paths if re.search(pattern, path)]
    except re.error as error:
        raise UserError(
            f"{flag}: received {pattern!r}; expected a regular expression ({error}); "
            r"put a backslash before each literal .[](){}*+?|^$\ in it."
        ) from None
    if not matched:
        raise UserError(
            f"{flag}: {pattern!r} matches no variable; expected a regular expression found in "
            f"a path such as {min(all_paths, default='head/kernel')!r}"
            f"{_suggestion(pattern, all_paths)}"
        )
    return matched


def _suggestion(pattern, all_paths):
    """Returns what else to write, such as `; did you mean block6a?`, from paths and their parts."""
    parts = {
        part for path in all_paths for part in (path, *path.split("/"), *re.split("[/_]", path))
    }
    general = "; use backbone/ for the whole backbone, head/ for the head"
    return suggestion(pattern, sorted(parts)) or general
