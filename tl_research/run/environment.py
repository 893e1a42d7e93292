"""What a run computes with: precision, XLA, versions and machine."""

import os
import platform
import sys
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.machine import cores

# What multiplies bfloat16 itself, and the backbones whose steps it then makes faster in every round
# of both phases: python benchmarks/steps.py --of=precision --rounds=3 --backbones=...
_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
_FASTER_IN_BFLOAT16 = {"MobileNetV2", "EfficientNetLite0", "EfficientNetV2B0", "ResNet50"}

# Environment variables that decide how TensorFlow and its libraries compute.
_VARIABLES = (
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
    "TF_DETERMINISTIC_OPS",
    "TF_CUDNN_USE_AUTOTUNE",
    "NVIDIA_TF32_OVERRIDE",
)


def resolve_device(config: Config, recorded: dict, own_backbone: bool = False) -> tuple[str, bool]:
    """Sets Keras' dtype policy; returns (precision, whether XLA is on), as resolved here.

    Args:
        config: `Config`.
        recorded: Contents of `run.json`: a resumed run goes on with what it began with.
        own_backbone: Whether an extension's backbone takes the place of `config.backbone`.
    """
    gpus = tf.config.list_physical_devices("GPU")
    warn_of_hidden_gpu(gpus)
    precision = recorded.get("precision", config.precision)
    if precision == "auto":
        precision = _precision_of(gpus[0]) if gpus else _precision_on_cpu(config, own_backbone)
    if precision == "mixed_float16" and config.batchnorm == "training":
        raise UserError(
            "--batchnorm=training in mixed_float16, where a skipped step would move statistics; "
            "expected another precision; use --precision=float32"
        )
    keras.config.set_dtype_policy(precision)
    xla = bool(gpus) if config.xla == "auto" else config.xla == "on"
    return precision, recorded.get("xla", xla)


def warn_of_hidden_gpu(
    seen: Sequence, drivers: Sequence[str] = ("/proc/driver/nvidia/version", "/dev/nvidia0")
) -> None:
    """Says how to use an NVIDIA GPU that is there, and not hidden on purpose, where none of the
    GPUs that TensorFlow has `seen` is one.
    """
    if not seen and "CUDA_VISIBLE_DEVICES" not in os.environ and any(map(os.path.exists, drivers)):
        print(
            "warning: this machine has an NVIDIA GPU that TensorFlow does not see, so the CPU "
            "computes; expected CUDA's libraries; install them: "
            f"{sys.executable} -m pip install 'tensorflow[and-cuda]'",
            file=sys.stderr,
        )


def _precision_of(gpu):
    details = tf.config.experimental.get_device_details(gpu)
    capable = details.get("compute_capability", (0, 0)) >= (8, 0)
    return "mixed_bfloat16" if capable else "mixed_float16"


def _precision_on_cpu(config, own_backbone):
    # Elsewhere than oneDNN steps in bfloat16 take many times as long.
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() not in ("0", "false")
    measured = onednn and config.xla != "on" and not own_backbone  # as the table was filled
    pays = measured and pays_in_bfloat16(config.backbone, _cpuinfo())
    return "mixed_bfloat16" if pays else "float32"


def pays_in_bfloat16(backbone: str, cpuinfo: str) -> bool:
    """Returns whether a backbone trains faster in bfloat16 on a processor.

    Args:
        backbone: Its name.
        cpuinfo: What /proc/cpuinfo says; only x86 lists `flags` there.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = {flag for name, _, text in lines if name.strip() == "flags" for flag in text.split()}
    return backbone in _FASTER_IN_BFLOAT16 and bool(flags & _BFLOAT16_FLAGS)


def _cpuinfo():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read()
    except OSError:  # not on Linux
        return ""


def record() -> dict[str, dict]:
    """Returns what decides the bits of a run beside its flags, and is known, for `run.json`."""
    # A worker has its own device first.
    devices = sorted(device.name for device in tf.config.list_logical_devices())
    return {
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "machine": {"system": platform.platform(), "cores": cores(), "devices": devices},
        "variables": {name: os.environ.get(name, "not set") for name in _VARIABLES},
    }


def warn_of_others(recorded: dict) -> None:
    """Says so if a resumed run began with other versions, on another machine or with other
    environment variables; `recorded` is what `run.json` has.
    """
    different = [
        f"{name} {before[name]}, now {value}"
        for kind, now in record().items()
        for before in [recorded.get(kind, {})]
        for name, value in now.items()
        if before.get(name, value) != value
    ]
    if different:
        print(
            f"warning: the run began with {'; '.join(different)}; what follows need not equal an "
            "unbroken run",
            file=sys.stderr,
        )
