"""The environment of a run: precision, XLA, versions and machine."""

import os
import platform
import sys
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tl_research import machine
from tl_research.config import Config
from tl_research.errors import UserError, to_stderr

# Processor features that multiply bfloat16, and backbones whose steps were then faster in every
# round of both phases: python benchmarks/steps.py --of=precision --rounds=3 --backbones=...
_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
_FASTER_IN_BFLOAT16 = {
    "EfficientNetLite0",
    "EfficientNetLite1",
    "EfficientNetLite2",
    "EfficientNetV2B0",
    "MobileNetV2",
    "ResNet50",
}

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
    """Resolves precision and XLA, and sets Keras' dtype policy.

    Args:
        config: The settings.
        recorded: Contents of `run.json`, whose values a resumed run keeps.
        own_backbone: Whether the backbone is from an extension.

    Returns:
        (precision, whether XLA is on)
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
    """Warns if the machine has an NVIDIA GPU, not hidden on purpose, that TensorFlow does not see.

    Args:
        seen: The GPUs that TensorFlow sees.
        drivers: Paths that exist if there is one.
    """
    if not seen and "CUDA_VISIBLE_DEVICES" not in os.environ and any(map(os.path.exists, drivers)):
        to_stderr(
            "warning: this machine has an NVIDIA GPU that TensorFlow does not see, so the CPU "
            "is used; expected CUDA's libraries; install them: "
            f"{sys.executable} -m pip install 'tensorflow[and-cuda]'"
        )


def _precision_of(gpu):
    details = tf.config.experimental.get_device_details(gpu)
    capable = details.get("compute_capability", (0, 0)) >= (8, 0)
    return "mixed_bfloat16" if capable else "mixed_float16"


def _precision_on_cpu(config, own_backbone):
    # Without oneDNN, steps in bfloat16 take many times as long.
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() not in ("0", "false")
    measured = (
        onednn and config.xla != "on" and not own_backbone
    )  # the conditions of the measurement
    pays = measured and pays_in_bfloat16(config.backbone, machine.read("/proc/cpuinfo"))
    return "mixed_bfloat16" if pays else "float32"


def pays_in_bfloat16(backbone: str, cpuinfo: str) -> bool:
    """Returns whether a backbone trains faster in bfloat16 on a processor.

    Args:
        backbone: Its name.
        cpuinfo: Contents of /proc/cpuinfo; only x86 lists `flags` there.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = {flag for name, _, text in lines if name.strip() == "flags" for flag in text.split()}
    return backbone in _FASTER_IN_BFLOAT16 and bool(flags & _BFLOAT16_FLAGS)


def record() -> dict[str, dict]:
    """Returns the known facts, besides flags, that affect the bits of a run, for `run.json`."""
    # sorted, since a worker lists its own device first
    devices = sorted(device.name for device in tf.config.list_logical_devices())
    return {
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "machine": {"system": platform.platform(), "cores": machine.cores(), "devices": devices},
        "variables": {name: os.environ.get(name, "not set") for name in _VARIABLES},
    }


def warn_of_others(recorded: dict) -> None:
    """Warns if a resumed run began with other versions, another machine or other environment
    variables, according to the `recorded` contents of `run.json`.
    """
    different = [
        f"{name} {before[name]}, now {value}"
        for kind, now in record().items()
        for before in [recorded.get(kind, {})]
        for name, value in now.items()
        if before.get(name, value) != value
    ]
    if different:
        to_stderr(
            f"warning: the run began with {'; '.join(different)}; results may differ from an "
            "uninterrupted run"
        )
