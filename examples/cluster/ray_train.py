"""Trains on the machines of a Ray cluster, by the TensorflowTrainer of Ray Train.

    WORKERS=2 python examples/cluster/ray_train.py --flagfile=flowers.flags --workdir=/shared/run

Flags are those of train.py. Every machine has the project (`pip install -e '.[ray]'`), the images
and the place of --workdir. A worker has a core, and a GPU if there are enough for all. If one is
lost, all are started again, three times at most, and go on from the last checkpoint.
"""

import dataclasses
import json
import os

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.tensorflow import TensorflowTrainer

from tl_research import cli
from tl_research.config import Config
from tl_research.errors import UserError
from tl_research.reporting.terminal import say_result


def train_worker(settings):
    """Trains in one of the processes that Ray starts, each with its `TF_CONFIG`."""
    from tl_research import experiment

    experiment.run(Config(**settings))


def main():
    config = cli.config_from_flags()
    if not config.workdir:
        raise UserError("--workdir is missing; expected a place that all machines reach; add it")
    settings = {
        **dataclasses.asdict(config),
        "distribute": "multi_worker",
        "cluster": "tf_config",  # whatever started Ray
    }
    for name in ("workdir", "extension"):  # Ray calls the function in another directory
        settings[name] = settings[name] and os.path.abspath(settings[name])
    workers = int(os.environ.get("WORKERS", 2))
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # or workers say everything twice
    ray.init()
    gpus = ray.cluster_resources().get("GPU", 0)
    TensorflowTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus >= workers),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    ).fit()
    with open(os.path.join(settings["workdir"], "results.json"), encoding="utf-8") as file:
        say_result(json.load(file))


if __name__ == "__main__":
    cli.define_flags(Config)
    cli.run(main, takes="folder")
