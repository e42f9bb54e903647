"""The options of `onp zoo`."""

from __future__ import annotations

from dataclasses import dataclass

from onp.options import option


@dataclass(frozen=True)
class ZooConfig:
    """Which zoo, and who works on it."""

    out: str = option("", "folder of the zoo; the same command continues it", group="the zoo", metavar="DIR", required=True)
    count: int = option(300, "networks", group="the zoo", metavar="N")
    first: int = option(
        0, "number of the first network, so that several machines can share a zoo", group="the zoo", metavar="N"
    )
    data: tuple[str, ...] = option(
        (),
        "image sets beside the drawn ones, each NAME=TRAIN,TEST with NAME one of cifar10, fashion, gtsrb",
        group="the zoo",
        metavar="NAME=TRAIN,TEST",
    )
    seed: int = option(0, "of the distribution's draws", group="the zoo", metavar="N")
    splits: int = option(3, "of the clean images, for which dossiers are made", group="the zoo", metavar="N")
    search: bool = option(
        False, "dossiers of what a search for masks can learn from, in place of those of detection", group="the zoo"
    )
    workers: int = option(2, "processes of one thread each", group="the run", metavar="N")
    ray: str | None = option(
        None, "run on a Ray cluster: auto, or its address (pip install '.[ray]')", group="the run", metavar="ADDRESS"
    )
    gpu_share: float = option(0.25, "of a GPU that a worker takes, where there is one", group="the run", metavar="SHARE")
    quiet: bool = option(False, "no progress", group="output")
    json: bool = option(False, "errors as JSON", group="output")
