"""Prints the tables of docs/scale.md, which has the formulas: what 1 to 512 GPUs would take, and
which part takes longest.

    python benchmarks/scale_model.py
"""

import dataclasses
import math

from tl_research.reporting.pictures import markdown_table

_IMAGES = (10**5, 10**6, 10**7, 10**8, 10**9)
_GPUS = (1, 8, 64, 512)
_UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1}
_FEWEST_STEPS = 10  # of an epoch; with fewer there is nothing to train


@dataclasses.dataclass(frozen=True)
class Inputs:
    """EfficientNetV2B0 at 224 px in bfloat16, on nodes of 8 H100 SXM.

    The document says where each number is from.
    """

    file_bytes: float = 229e6 / 3670
    decoded_per_core: float = 400.0  # images/s
    pixel_bytes: int = 224 * 224 * 3
    feature_bytes: int = 37632  # of a view, at the boundary of finetune
    # FLOP and bytes of an image: a live step of head, or filling the cache
    forward: tuple = (1.434e9, 25.1e6)
    live: tuple = (1.928e9, 31.9e6)  # a live step of finetune
    cached: tuple = (0.741e9, 10.6e6)  # a step of finetune on kept features
    parameters: int = 3_102_709  # that finetune trains
    head_epochs: int = 8
    finetune_epochs: int = 10
    views: int = 4
    batch: int = 256  # images of a step on each GPU
    flops: float = 989e12
    bandwidth: float = 3.35e12  # bytes/s
    efficiency: float = 0.25  # of what arithmetic and memory allow
    node_gpus: int = 8
    node_cores: int = 112
    node_memory: float = 1e12  # bytes for pixels, and as many for features
    node_disk: float = 30e12  # bytes
    nvlink: float = 450e9  # bytes/s of a GPU, in each direction
    infiniband: float = 50e9
    store: float = 10e9  # bytes/s that shared storage gives to all nodes together


def rate(work, inputs=Inputs()):
    """Returns images/s of one GPU for (FLOP, bytes) of an image."""
    flop, moved = work
    return inputs.efficiency * min(inputs.flops / flop, inputs.bandwidth / moved)


def all_reduce_seconds(gpus, inputs=Inputs()):
    """Returns the seconds in which a ring of GPUs sums the gradients of one step."""
    link = inputs.nvlink if gpus <= inputs.node_gpus else inputs.infiniband
    return 2 * (gpus - 1) / gpus * 4 * inputs.parameters / link


def predict(images, gpus, inputs=Inputs()):
    """Returns ({part: seconds of a run}, where its features are: memory, disk or nowhere).

    Args:
        images: Training images.
        gpus: GPUs; fewer than a node's have their share of it.
    """
    processes = math.ceil(gpus / inputs.node_gpus)
    node = min(1.0, gpus / inputs.node_gpus)
    own = images / processes
    kept = inputs.views * own * inputs.feature_bytes
    room = {"memory": node * inputs.node_memory, "disk": node * inputs.node_disk}
    place = next((place for place, size in room.items() if kept <= size), "nowhere")
    live, epochs = place == "nowhere", inputs.head_epochs + inputs.finetune_epochs
    in_memory = own * inputs.pixel_bytes <= node * inputs.node_memory
    again = through_frozen = inputs.views
    if live:
        again, through_frozen = epochs, inputs.head_epochs
    # the first checks each file, and keeps its pixels
    passes = 1 if in_memory else 1 + again
    hashed = processes > 1  # before that each file is read once, to know whose it is
    trained = inputs.finetune_epochs * images / gpus
    return {
        "storage": (passes + hashed) * images * inputs.file_bytes / inputs.store,
        "decode": passes * own / (node * inputs.node_cores * inputs.decoded_per_core),
        "frozen part": through_frozen * images / (gpus * rate(inputs.forward, inputs)),
        "finetune": trained / rate(inputs.live if live else inputs.cached, inputs),
        "all-reduce": trained / inputs.batch * all_reduce_seconds(gpus, inputs),
    }, place


def total(parts):
    """Returns the seconds of a run: files are read, and decoded, while GPUs compute one part after
    the other.
    """
    return max(
        parts["storage"],
        parts["decode"],
        parts["frozen part"] + parts["finetune"] + parts["all-reduce"],
    )


def replica_ratio(step_seconds, parameters, link=math.inf, memory=20e9):
    """Returns the rate of two replicas that share their cores over that of one, of which a step is
    given.

    Args:
        step_seconds: Of one replica on all cores.
        parameters: That are trained.
        link: Bytes/s between two processes; two devices of one have none.
        memory: Bytes/s.
    """
    return step_seconds / (step_seconds + 32 * parameters / memory + 4 * parameters / link)


def table(inputs=Inputs()):
    """Returns a Markdown table of time, longest part and place of the features."""

    def cell(images, gpus):
        if images < _FEWEST_STEPS * gpus * inputs.batch:
            return "-"
        parts, place = predict(images, gpus, inputs)
        seconds = total(parts)
        unit, size = next(each for each in _UNITS.items() if seconds >= each[1])
        return f"{seconds / size:.2g} {unit}: {max(parts, key=parts.get)} ({place})"

    rows = [
        [f"10^{round(math.log10(images))}", *(cell(images, gpus) for gpus in _GPUS)]
        for images in _IMAGES
    ]
    return markdown_table(["images", *(f"{gpus} GPU" for gpus in _GPUS)], rows)


def main():
    print(f"{table()}\n")
    for name in ("forward", "live", "cached"):
        print(f"{name}: {rate(getattr(Inputs, name)):.0f} images/s a GPU")
    steps = ", ".join(
        f"{1e3 * all_reduce_seconds(gpus):.2f} ms on {gpus} GPU" for gpus in _GPUS[1:]
    )
    print(
        f"a step on kept features: {1e3 * Inputs.batch / rate(Inputs.cached):.2f} ms; its "
        f"all-reduce: {steps}"
    )
    print(
        f"two replicas on the cores of one: {replica_ratio(32 / 112, 2_600_037):.2f} of its rate, "
        f"as two processes {replica_ratio(32 / 112, 2_600_037, link=1e9):.2f}"
    )


if __name__ == "__main__":
    main()
