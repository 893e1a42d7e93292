"""The figure of environments: `train.py` as others start it, each time in a process of its own,
where their settings, locale, home, terminal or cores are other ones. The bits must be the same.
"""

import json
import os
import subprocess
import sys

from fault_lab import hashed, one_hash, passed
from program import TRAIN

from tl_research.files import write_atomically

_FLAGS = (
    "--dataset=directory --backbone=EfficientNetLite0 --weights=none --image_size=32 "
    "--batch_size=16 --epochs=1,1 --precision=float32 --augment_views=0 --resume=never"
)
_KERAS_JSON = {
    "channels": {"image_data_format": "channels_first"},
    "float64": {"floatx": "float64"},
    "epsilon": {"epsilon": 0.01},
    "backend": {"backend": "jax"},
}
# Of each case the command of bash, in which RUN is that of the run.
_CASES = {
    "KERAS_BACKEND": "export KERAS_BACKEND=jax; RUN",
    "TF_USE_LEGACY_KERAS": "export TF_USE_LEGACY_KERAS=1; RUN",
    "KERAS_MAX_STEPS_PER_EPOCH": "export KERAS_MAX_STEPS_PER_EPOCH=1; RUN",
    "MPLBACKEND of a notebook": "export MPLBACKEND=module://matplotlib_inline.x; RUN",
    "TF_CONFIG of a platform": """export TF_CONFIG='{"cluster": {"worker": ["a:1"]}}'; RUN""",
    "ASCII locale": "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; RUN",
    "home that is not there": "export HOME=/proc/nobody; RUN",
    "no standard streams": "RUN <&- >&- 2>&-",
    "stderr closed": "RUN 2>&-",
    "nobody reads": "RUN | true; exit ${PIPESTATUS[0]}",
    "no room for the log": "RUN > /dev/full",
    "one core": "taskset -c 0 RUN",
    "64 open files": "ulimit -n 64; RUN",
}
_CODES = {"no room for the log": 9}  # others end with 0
_OTHER_SUMS = ("one core",)  # fewer threads add in another order


def environments(lab):
    """Fresh runs in other environments: each ends, with the weights of the plain one."""
    commands = {"plain": "RUN"}
    for name, settings in _KERAS_JSON.items():
        os.makedirs(home := lab.folder(name))
        write_atomically(f"{home}/keras.json", json.dumps(settings))
        commands[name] = f"export KERAS_HOME='{home}'; RUN"
    commands |= _CASES
    plans = list(commands.items())[: 1 + lab.many(len(commands) - 1)]
    plain, *done = lab.each(_run, plans)
    others = [case for case in done if case["name"] in _OTHER_SUMS]
    done = one_hash([plain, *(case for case in done if case not in others)])[1:] + others
    return [plain, *done], (
        f"{passed(done)} runs under other settings of Keras and matplotlib, locales, homes, "
        "streams and limits end, all but that on one core with the `weights_sha256` of the plain "
        "one"
    )


def _run(lab, name, command):
    """Returns the case of one run of train.py in a shell."""
    run = lab.folder(f"{name} run")
    train = f"'{sys.executable}' '{TRAIN}' {_FLAGS} '--data_dir={lab.photos}' '--workdir={run}'"
    done = subprocess.run(["bash", "-c", command.replace("RUN", train)], capture_output=True)
    case = hashed(name, run, done.returncode, _CODES.get(name, 0))
    return {**case, "said": done.stderr[-300:].decode(errors="replace")}
