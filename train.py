"""Trains an image model from a configuration: `python train.py --help` lists what there is to choose.

    python train.py                                   2,000 generated images, a small ResNet
    python train.py data=folder data.root=DIR         your images: DIR/CLASS/IMAGE
    python train.py -m loader.num_workers=0,2,4       a run for each value, and a table

`hydra_main` is `@hydra.main` (tab completion looks for these words) with the configuration checked first.
"""

from pathlib import Path

from pipeline.cli import hydra_main
from pipeline.config import TrainConfig


@hydra_main("train")
def main(cfg: TrainConfig, run_dir: Path) -> float:
    """Train as `cfg` says and return the last evaluation's top-1; the report is in `run_dir`."""
    from pipeline.training.run import train  # not above: --help and a wrong key need no torch

    return train(cfg, run_dir)


if __name__ == "__main__":
    main()
