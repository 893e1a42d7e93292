"""What the audit of the images finds of faults that were planted: labels exchanged on purpose, and
pictures encoded again, made smaller or cropped.

    python benchmarks/data_audit.py --dataset=tf_flowers --data_dir=PHOTOS

For each seed the labels of --share of the training images are exchanged; of as many suspects as
were planted the table says which share was (precision, and so recall). Photographs have wrong
labels of their own, which count against it. Then the distance of copies from their original, which
the threshold of `tl_research/data_audit.py` was chosen by.
"""

import tempfile
import time

import measuring
import numpy as np
import PIL.Image
import program

from tl_research import data_audit
from tl_research.data import pipeline
from tl_research.settings import setting
from tl_research.training import features

_LABELS = """
seed | {seed}
planted | {planted}
precision = recall | {precision:.3f}
seconds | {seconds:.1f}
"""
_COPIES = """
copy | {copy}
median distance | {median:.3f}
largest | {largest:.3f}
near | {near:.2f}
original is nearest | {nearest:.2f}
"""
COPIES = {
    "encoded again, quality 75": lambda image: image,
    "90 % of its size": lambda image: image.resize([side * 9 // 10 for side in image.size]),
    "cropped by 5 %": lambda image: image.crop(
        [side * part // 20 for part in (1, 19) for side in image.size]
    ),
}


class Settings(program.Training):
    """The flags of this benchmark."""

    dataset: str = setting("drawn_flowers", "as of train.py")
    data_dir: str | None = setting(None, "as of train.py")
    backbone: str = setting("EfficientNetLite0", "as of train.py")
    weights: str = setting("imagenet", "as of train.py")
    image_size: int = setting(224, "as of train.py")
    share: float = setting(0.03, "of the training labels that are exchanged", above=0, high=0.5)
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the images that are chosen")
    copies: int = setting(20, "images of which copies are made")


def pooled(config, classifier, examples):
    """Returns float32 [N, d], what the head is given of images that are not augmented."""
    views = features.Views(config.seed, 0, False)
    live = features.LiveSource(classifier, examples, classifier.head_boundary, views)
    return features.compute_features(live, config.batch_size).kept(0)[0].numpy()


def exchanged(labels, count, num_classes, seed):
    """Returns (places of `count` labels, all labels with those exchanged for others)."""
    random = pipeline.generator(seed)
    places = random.choice(len(labels), count, replace=False)
    labels = labels.copy()
    labels[places] = (labels[places] + random.integers(1, num_classes, count)) % num_classes
    return places, labels


def label_row(found, data, share, seed):
    """Returns what an audit finds of exchanged training labels.

    Args:
        found: float32 [N, d], features of training and then validation images.
        data: `Dataset`.
        share: Of the training labels that are exchanged.
        seed: Decides which.
    """
    count, classes = round(share * len(data.train)), data.classes
    places, labels = exchanged(data.train.labels, count, len(classes), seed)
    sides = np.repeat(["train", "validation"], [len(data.train), len(data.validation)])
    names = data.train.names + data.validation.names
    start = time.perf_counter()
    labels = np.concatenate([labels, data.validation.labels])
    audit = data_audit.examine(found, labels, sides, names, classes)
    seconds = time.perf_counter() - start
    suspects = audit.order[:count].tolist()
    return {
        "seed": seed,
        "planted": count,
        "precision": np.isin(suspects, places).mean(),
        "not_planted": [names[place] for place in suspects if place not in places],
        "seconds": seconds,
    }


def copy_rows(config, classifier, found, data, count):
    """Returns a row for each kind of copy: how far they are from their original, and how many of
    them are nearer to it than to every other image.
    """
    chosen = pipeline.generator(0).choice(len(data.train), count, replace=False)
    mean = found.mean(axis=0)

    def units(features):
        return (features - mean) / np.linalg.norm(features - mean, axis=1, keepdims=True)

    rows = []
    for kind, change in COPIES.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [f"{folder}/{place}.jpg" for place in chosen]
            for place, path in zip(chosen, paths):
                with PIL.Image.open(data.train.paths[place]) as image:
                    change(image.convert("RGB")).save(path, quality=75)
            copies = pipeline.Examples(
                tuple(paths), tuple(paths), data.train.labels[chosen], config.image_size, None
            )
            cosines = units(pooled(config, classifier, copies)) @ units(found).T
        distances = 1 - cosines[np.arange(count), chosen]
        rows.append(
            {
                "copy": kind,
                "median": float(np.median(distances)),
                "largest": float(distances.max()),
                "near": float((distances <= data_audit.NEAR).mean()),
                "nearest": float((cosines.argmax(axis=1) == chosen).mean()),
            }
        )
    return rows


def report(settings):
    with tempfile.TemporaryDirectory() as place:
        config = measuring.make_config(
            settings, settings.backbone, settings.image_size, workdir=place
        )
        data, _ = measuring.load(config)
    classifier = measuring.make_classifier(config, "head", len(data.classes))
    sides = (data.train, data.validation)
    found = np.concatenate([pooled(config, classifier, examples) for examples in sides])
    labels = [label_row(found, data, settings.share, seed) for seed in settings.seeds]
    copies = copy_rows(config, classifier, found, data, settings.copies)
    program.write_json(settings.output_json, settings, rows={"labels": labels, "copies": copies})
    others = "".join(
        f"\nseed {row['seed']}, suspects not planted: {', '.join(row['not_planted'])}"
        for row in labels
    )
    return f"{program.table(_LABELS, labels)}\n\n{program.table(_COPIES, copies)}{others}"


if __name__ == "__main__":
    program.main(Settings, report)
