"""LoRe on frozen features: a basis of rewards and the seen users' weights, unseen users' weights solved in closed form.

    python -m experiments.lore --config=configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.lore --config=configs/lore_personalllm.py:cpu --workdir=runs/lore

Beside it stand linear methods on the same features, those of `config.methods`; a config's section `studies` asks for
the studies of `experiments.studies.lore_studies` too.
"""

from functools import partial
from pathlib import Path

from experiments import linear
from experiments.embed import embed
from experiments.lore_methods import FITS, METHOD, ORACLE, PERSONAL, Models
from experiments.prepare import prepare_votes
from experiments.reporting.summary import summarise
from experiments.runner.cli import Config, launch
from experiments.runner.workspace import Scored, Workspace, log, workspaces
from experiments.studies import lore_studies
from pref_jax.errors import UserError


def run(config: Config, workdir: Path) -> None:
    """The methods on features of every seed, the studies that the config asks for, then the report."""
    methods = [name for name in FITS if name in config.methods]
    if not methods:
        raise UserError(f"config.methods names no method on features; add some of: {', '.join(FITS)}")
    studies = lore_studies.read(config)
    every = [Models(work) for work in workspaces(config, workdir)]
    for models in every:
        prepare_votes(models.work)
        for method in methods:
            lore(models.work, method, models)
        if studies:
            lore_studies.run(models, methods, studies, workdir)
    sections = partial(lore_studies.sections, every, methods, studies, workdir) if studies else None
    summarise(config, workdir, sections)


def lore(work: Workspace, method: str = METHOD, models: Models | None = None) -> None:
    """Fits one of the methods on features and scores it, unless that is done or the data lacks what it needs."""
    models = models or Models(work)
    if not models.able(method):
        lacking = "groups" if method == ORACLE else "score head that reads these features"
        log(f"seed {work.seed}: {method} left out: there is no {lacking}")
        return
    embed(work)

    def score():
        model, task = models(method), models.task
        controls = linear.controls(task, model, work.seed) if method in PERSONAL else {}
        return Scored(linear.margins(task, model), {**model.facts, **models.needs(method)}, controls)

    work.scored(method, score)


if __name__ == "__main__":
    launch(run, __doc__ or "")
