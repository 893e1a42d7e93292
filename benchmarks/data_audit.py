"""What a run finds of faults that were planted among its images: labels exchanged on purpose, and
copies encoded again, made smaller, cropped or brighter.

    python benchmarks/data_audit.py --dataset=tf_flowers --data_dir=PHOTOS

For each seed the labels of --share of the training images are exchanged; of as many suspects as
were planted the table says which share was (precision, and so recall). Photographs have wrong
labels of their own, which count against it.

A second table has the share of unchanged labels that look doubtful if each class has only a few
images, from which `data_audit.caveat` has its number.

Of each kind of copy the last table has how many the split joins to their original, and how many to
others, by `tl_research/data/near_copies.py`; and how far their features are from those of the
original, which the threshold of `tl_research/data_audit.py` was chosen by. Last, every group of the
photographs themselves: whether one is of different pictures only eyes can tell.
"""

import io
import tempfile
import time

import measuring
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import program

from tl_research import data_audit, quiet
from tl_research.data import near_copies, pipeline
from tl_research.settings import setting
from tl_research.training import features

_LABELS = """
seed | {seed}
planted | {planted}
precision = recall | {precision:.3f}
seconds | {seconds:.1f}
"""
_FEW = """
images per class | {each}
doubtful | {doubtful:.1%}
"""
_COPIES = """
copy | {copy}
joined to its original | {found:.1%}
to another | {others}
median distance | {median:.3f}
largest | {largest:.3f}
near | {near:.2f}
original is nearest | {nearest:.2f}
"""
# {name: (JPEG quality, what is changed before)}
CHANGES = {
    "encoded, quality 70": (70, {}),
    "encoded, quality 95": (95, {}),
    "resized to 90 %": (90, {"share": 0.9}),
    "resized to 50 %": (90, {"share": 0.5}),
    "cropped by 5 %, all around": (90, {"edges": (0.025, 0.025, 0.975, 0.975)}),
    "cropped by 5 %, one corner": (90, {"edges": (0, 0, 0.95, 0.95)}),
    "cropped by 10 %, all around": (90, {"edges": (0.05, 0.05, 0.95, 0.95)}),
    "brighter by 15 %": (90, {"brightness": 1.15}),
}


class Settings(program.Training, program.Network, program.Photographs):
    """The flags of this benchmark."""

    share: float = setting(0.03, "of the training labels that are exchanged", above=0, high=0.5)
    seeds: tuple[int, ...] = setting((0, 1, 2), "of the images that are chosen")
    few: tuple[int, ...] = setting((5, 10, 20, 40, 80), "images per class, where they are few")
    copies: int = setting(200, "images that are copied, in each way, at most", low=1)


def label_row(found, images, train, classes, share, seed):
    """Returns what an audit finds of exchanged training labels.

    Args:
        found: float32 [N, d], features of the images.
        images: `Examples`, training and then validation images.
        train: How many of them are training images.
        classes: Names of the classes.
        share: Of the training labels that are exchanged.
        seed: Decides which.
    """
    random, count, labels = pipeline.generator(seed), round(share * train), images.labels.copy()
    places = random.choice(train, count, replace=False)
    labels[places] = (labels[places] + random.integers(1, len(classes), count)) % len(classes)
    sides = np.repeat(["train", "validation"], [train, len(images) - train])
    start = time.perf_counter()
    audit = data_audit.examine(found, labels, sides, images.names, classes)
    suspects = audit.order[:count].tolist()
    return {
        "seed": seed,
        "planted": count,
        "precision": np.isin(suspects, places).mean(),
        "not_planted": [images.names[place] for place in suspects if place not in places],
        "seconds": time.perf_counter() - start,
    }


def few_row(found, labels, each, seeds):
    """Returns the share of labels that look doubtful among a few images of each class.

    Args:
        found: float32 [N, d], features of the images.
        labels: int [N].
        each: Images per class.
        seeds: Each decides which; the share is their mean.
    """
    shares, classes = [], [str(label) for label in range(labels.max() + 1)]
    for seed in seeds:
        random = pipeline.generator(seed)
        of_class = (np.flatnonzero(labels == label) for label in range(len(classes)))
        chosen = np.concatenate([random.permutation(of)[:each] for of in of_class])
        sides = np.repeat("train", len(chosen))
        audit = data_audit.examine(
            found[chosen], labels[chosen], sides, list(map(str, chosen)), classes
        )
        shares.append(audit.summary["data_audit"]["suspects"] / len(chosen))
    return {"each": each, "doubtful": float(np.mean(shares))}


def changed(pixels, quality, share=1.0, edges=(0, 0, 1, 1), brightness=1.0):
    """Returns an image cropped (left, top, right, bottom), resized, brighter, and encoded."""
    image = PIL.Image.fromarray(pixels)
    image = image.crop([round(edge * side) for edge, side in zip(edges, 2 * image.size)])
    size = [round(share * side) for side in image.size]
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    PIL.ImageEnhance.Brightness(image).enhance(brightness).save(encoded, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(encoded))


def joined(thumbnails, groups, copies, chosen):
    """Returns the share of copies that are near their original, and how many are near others.

    Args:
        thumbnails: Of all images, as of `near_copies.thumbnail`.
        groups: The name of each image's group.
        copies: Thumbnails of the copies.
        chosen: int [P], the place of the original of each.
    """
    pairs = near_copies.pairs(np.concatenate([thumbnails, copies])).tolist()
    found = [(i, chosen[j - len(groups)]) for i, j in pairs if i < len(groups) <= j]
    return {
        "found": sum(i == own for i, own in found) / len(chosen),
        "others": sum(groups[i] != groups[own] for i, own in found),
    }


def distances(found, copies, chosen):
    """Returns how far copies are from their original by their features, and how many of them are
    nearer to it than to every other image.

    Args:
        found: float32 [N, d], features of all images.
        copies: float32 [P, d], features of the copies.
        chosen: int [P], the place of the original of each.
    """
    mean = found.mean(axis=0)
    units = [
        (of - mean) / np.linalg.norm(of - mean, axis=1, keepdims=True) for of in (copies, found)
    ]
    cosines = units[0] @ units[1].T
    apart = 1 - cosines[np.arange(len(chosen)), chosen]
    return {
        "median": float(np.median(apart)),
        "largest": float(apart.max()),
        "near": float((apart <= data_audit.NEAR).mean()),
        "nearest": float((cosines.argmax(axis=1) == chosen).mean()),
    }


def _images(data, size):
    """Returns `Examples`: the training and then the validation images of a `Dataset`."""
    train, validation = data.train, data.validation
    return pipeline.Examples(
        train.names + validation.names,
        train.paths + validation.paths,
        np.concatenate([train.labels, validation.labels]),
        size,
        None,
    )


def copy_rows(images, found, thumbnails, groups, chosen, pooled):
    """Yields a row for each kind of copy: what `joined` and `distances` return.

    Args:
        images: `Examples`.
        found: float32 [N, d], features of the images.
        thumbnails: Of the images.
        groups: The name of each image's group.
        chosen: int [P], places of those that are copied.
        pooled: A function of `Examples` to their features.
    """
    for name, (quality, options) in CHANGES.items():
        copies = [changed(images.original(i), quality, **options) for i in chosen]
        own = pipeline.Examples(
            images.names, copies, images.labels[chosen], images.image_size, None
        )
        yield {
            "copy": name,
            **joined(thumbnails, groups, list(map(near_copies.thumbnail, copies)), chosen),
            **distances(found, pooled(own), chosen),
        }


def report(settings):
    quiet.drop_retracing_notes()  # each kind of copy is a network's input of its own
    with tempfile.TemporaryDirectory() as place:
        config = measuring.make_config(settings, *settings.network, workdir=place)
        data, _ = measuring.load(config)
    classifier = measuring.make_classifier(config, "head", len(data.classes))

    def pooled(examples):
        views = features.Views(config.seed, 0, False)
        live = features.LiveSource(classifier, examples, classifier.head_boundary, views)
        return features.compute_features(live, config.batch_size).kept(0)[0].numpy()

    images, train = _images(data, config.image_size), len(data.train)
    found = pooled(images)
    labels = [
        label_row(found, images, train, data.classes, settings.share, seed)
        for seed in settings.seeds
    ]
    few = [few_row(found, images.labels, each, range(10)) for each in settings.few]
    kept = np.stack([near_copies.thumbnail(images.original(i)) for i in range(len(images))])
    groups = near_copies.groups(kept, images.names)
    chosen = pipeline.generator(0).permutation(train)[: settings.copies]
    rows = copy_rows(images, found, kept, groups, chosen, pooled)
    copies = program.gathered(settings, _COPIES, rows, labels=labels, few=few)
    told = [
        f"seed {row['seed']}, suspects not planted: {', '.join(row['not_planted'])}"
        for row in labels
    ]
    for group in dict.fromkeys(group for group in groups if groups.count(group) > 1):
        told.append(f"group: {', '.join(n for n, of in zip(images.names, groups) if of == group)}")
    return "\n\n".join(
        [
            program.table(_LABELS, labels),
            program.table(_FEW, few),
            program.table(_COPIES, copies),
            "\n".join(told),
        ]
    )


if __name__ == "__main__":
    program.main(Settings, report)
