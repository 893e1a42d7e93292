"""What `--precision=auto` means on a machine: from its device and a table of measurements, never from timings of the run."""

import tensorflow as tf

# Backbones that bfloat16 makes faster, in both phases, on a CPU that multiplies it natively: benchmarks/precision.py.
_FASTER_ON_CPU = ("EfficientNetLite0", "EfficientNetV2B0", "MobileNetV2", "ResNet50")
_NATIVE = {"avx512_bf16", "amx_bf16"}  # as Linux names what a processor has


def resolve_precision(precision, backbone):
    """Returns the name of Keras' dtype policy for `--precision`.

    Args:
        precision: `auto`, or the policy itself.
        backbone: Name of the backbone.
    """
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "mixed_bfloat16" if capability >= (8, 0) else "float32"
    return "mixed_bfloat16" if backbone in _FASTER_ON_CPU and _NATIVE & _cpu_features() else "float32"


def _cpu_features():
    """Returns the names of what the processor can do, or nothing where the system does not say."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line.split() for line in file if line.startswith("flags")), ()))
    except OSError:
        return set()
