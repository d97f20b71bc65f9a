"""Measures an input pipeline from a configuration: `python bench.py --help` lists what there is to choose.

    python bench.py                                   2,000 generated images at 224 pixels
    python bench.py -m loader.num_workers=0,4,8       a trial for each value, and a table
    python bench.py bench.contender=torch             torch's DataLoader, on the same files

`hydra_main` is `@hydra.main` (tab completion looks for these words) with the configuration checked first.
"""

from pathlib import Path

from pipeline.cli import hydra_main
from pipeline.config import BenchConfig


@hydra_main("bench")
def main(cfg: BenchConfig, run_dir: Path) -> float:
    """Measure one trial and return its images per second; the report is in `run_dir`."""
    from pipeline.bench.trial import run_trial  # not above: --help and a wrong key need no torch

    return run_trial(cfg, run_dir)


if __name__ == "__main__":
    main()
