"""The figure of environments: `train.py` as others start it, each time in a process of its own,
where their settings, locale, home, terminal or cores are other ones. The bits must be the same.
"""

import subprocess
import sys

from fault_lab import judged, passed
from program import TRAIN, read_json

_FLAGS = (
    "--dataset=directory --backbone=EfficientNetLite0 --weights=none --image_size=32 "
    "--batch_size=16 --epochs=1,1 --precision=float32 --augment_views=0 --resume=never"
)
_KERAS_JSON = """export KERAS_HOME="$1"; mkdir "$1"; echo '{%s}' > "$1/keras.json"; RUN"""
# Of each case the command of bash, in which RUN is that of the run, and $1 a folder of its own.
_CASES = {
    "plain": "RUN",
    "channels": _KERAS_JSON % '"image_data_format": "channels_first"',
    "float64": _KERAS_JSON % '"floatx": "float64"',
    "epsilon": _KERAS_JSON % '"epsilon": 0.01',
    "backend": _KERAS_JSON % '"backend": "jax"',
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
    plain, *done = lab.each(_run, list(_CASES.items())[: 1 + lab.many(len(_CASES) - 1)])
    cases = [plain]
    for case in done:
        other = case["name"] not in _OTHER_SUMS and case["hash"] != plain["hash"]
        cases.append(judged(case, {"another hash": other}))
    return cases, (
        f"{passed(cases[1:])} runs under other settings of Keras and matplotlib, locales, homes, "
        "streams and limits end, all but that on one core with the `weights_sha256` of the plain "
        "one"
    )


def _run(lab, name, command):
    """Returns the case of one run of train.py in a shell."""
    run = lab.folder(f"{name} run")
    train = f"'{sys.executable}' '{TRAIN}' {_FLAGS} '--data_dir={lab.photos}' '--workdir={run}'"
    words = ["bash", "-c", command.replace("RUN", train), "bash", lab.folder(name)]
    done, expected = subprocess.run(words, capture_output=True), _CODES.get(name, 0)
    case = {"name": name, "said": done.stderr[-300:].decode(errors="replace"), "hash": None}
    if done.returncode == expected:
        case["hash"] = read_json(f"{run}/results.json")["weights_sha256"]
    code = f"exit code {done.returncode} instead of {expected}"
    return judged(case, {code: done.returncode != expected})
