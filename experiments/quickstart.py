"""From nothing to a table of personalised rewards in minutes: `compare` on synthetic data.

python -m experiments.quickstart --workdir=runs/quickstart
"""

from experiments.compare import run
from experiments.runner.cli import launch

if __name__ == "__main__":
    launch(run, __doc__ or "", default_config="configs/quickstart.py")
