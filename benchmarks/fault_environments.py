"""The figure of environments: `train.py` as others start it, each time in a process of its own,
where their settings, locale, home, terminal or cores are other ones. The bits must be the same.
"""

import json
import os
import subprocess
import sys

from fault_lab import passed

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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
_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# Of each case: environment, what stands before and behind the command, and the exit code.
_CASES = {
    "KERAS_BACKEND": ({"KERAS_BACKEND": "jax"}, "", "", 0),
    "TF_USE_LEGACY_KERAS": ({"TF_USE_LEGACY_KERAS": "1"}, "", "", 0),
    "KERAS_MAX_STEPS_PER_EPOCH": ({"KERAS_MAX_STEPS_PER_EPOCH": "1"}, "", "", 0),
    "MPLBACKEND of a notebook": ({"MPLBACKEND": "module://matplotlib_inline.x"}, "", "", 0),
    "TF_CONFIG of a platform": ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "", "", 0),
    "ASCII locale": (_ASCII, "", "", 0),
    "home that is not there": ({"HOME": "/proc/nobody"}, "", "", 0),
    "no standard streams": ({}, "", "<&- >&- 2>&-", 0),
    "stderr closed": ({}, "", "2>&-", 0),
    "nobody reads": ({}, "", "| true; exit ${PIPESTATUS[0]}", 0),
    "no room for the log": ({}, "", "> /dev/full", 9),
    "one core": ({}, "taskset -c 0", "", 0),
    "64 open files": ({}, "ulimit -n 64;", "", 0),
}
_OTHER_SUMS = ("one core",)  # fewer threads add in another order


def environments(lab):
    """Fresh runs in other environments: each ends, with the weights of the plain one."""
    cases = {name: ({"KERAS_HOME": lab.folder(name)}, "", "", 0) for name in _KERAS_JSON}
    for name, settings in _KERAS_JSON.items():
        os.makedirs(lab.folder(name))
        with open(os.path.join(lab.folder(name), "keras.json"), "w", encoding="utf-8") as file:
            json.dump(settings, file)
    plain = _run(lab, "plain", {}, "", "", 0)
    plans = [(name, *case) for name, case in (cases | _CASES).items()]
    done = lab.each(_run, plans[: lab.many(len(plans))])
    for case in done:
        same = case.get("weights_sha256") == plain.get("weights_sha256")
        if "failed" not in case and not same and case["name"] not in _OTHER_SUMS:
            case["failed"] = "another hash"
    return [plain, *done], (
        f"{passed(done)} runs under other settings of Keras and matplotlib, locales, homes, "
        "streams and limits end, all but that on one core with the `weights_sha256` of the plain "
        "one"
    )


def _run(lab, name, environment, before, behind, code):
    """Returns the case of one run of train.py in a shell."""
    run = lab.folder(f"{name} run")
    command = (
        f"{before} '{sys.executable}' '{_ROOT}/train.py' {_FLAGS} '--data_dir={lab.photos}' "
        f"'--workdir={run}' {behind}"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, env={**os.environ, **environment}
    )
    if done.returncode != code:
        said = done.stderr[-300:].decode(errors="replace")
        return {"name": name, "failed": f"exit code {done.returncode} instead of {code}: {said}"}
    with open(os.path.join(run, "results.json"), encoding="utf-8") as file:
        return {"name": name, "weights_sha256": json.load(file)["weights_sha256"]}
