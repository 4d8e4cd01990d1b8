"""The graph's model and recipe. Imports no JAX: configs read it."""

import dataclasses
from typing import Any

from pref_jax.errors import UserError

# Message functions, see `copl_jax.graph.message_passing`.
LAYERS = ("gcf", "gcf_paper", "lightgcn", "attention", "normed", "linear")
CHOICES = {
    "edges": ("distinct", "counted"),
    "select": ("accuracy", "loss"),
    "readout": ("", "last", "mean", "sum"),
    "nodes": ("table", "text", "both", "auto"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GCFConfig:
    """Model and recipe; the defaults are the paper's. `linear_config` gives what to use.

    Attributes:
      layer: the message function, one of `LAYERS`.
      dim: D.
      num_layers: K.
      readout: a node's embedding is what the "last" layer gives, or the "mean" or "sum" of the table and all layers; ""
        as the layer is made for.
      edges: what several votes of a user on one response weigh: "distinct" as one, "counted" as many, which is how the
        authors' code has it.
      bias: a number per response is added to its products with users, begun at its Bradley-Terry value, so that
        popularity takes up no dimension.
      priors: precisions of a Gaussian prior of every entry of the table, each of which is tried; the lowest loss of the
        validation votes chooses. Strong priors leave what users are to their neighbours' votes, weak ones to their own.
        (): no prior.
      nodes: what a response's row of the table is: "table" its own, "text" a linear map of features of its text, "both"
        their sum, so that a response nobody voted on has an embedding too; "auto" the sum where there are texts and
        people hardly share responses, and "table" elsewhere (`text_nodes.settle`). Texts need `priors`.
      edge_dropout: probability that an edge is left out, drawn again for each sign, direction, layer and step.
      regularisation: factor of the squared norms of the scored embeddings, summed over the batch.
      learning_rate: AdamW's peak; linear warm-up, then cosine to 0.
      weight_decay: AdamW's, decoupled.
      warmup: fraction of the steps.
      batch_size: pairs a step; None for all of them. What does not fill a batch waits for the next shuffle.
      epochs: passes over the pairs; with batch_size None an epoch is one step.
      evaluate_every: epochs between two looks at the validation pairs; divides `epochs`.
      patience: evaluations without a better one after which training ends; None: never.
      select: what of the validation votes names the best evaluation: "accuracy", or "loss" at the scale of margins that
        suits them best, so that priors may shrink margins.
      ties: ties are edges and votes of the loss (`copl_jax.graph.edge_weights`); False leaves them out.
      strengths: what those of preferences are for: levels, weight, margin, ignore (`pref_jax.likelihood.StrengthUse`).
    """

    layer: str = "gcf"
    dim: int = 512
    num_layers: int = 4
    readout: str = ""
    edges: str = "distinct"
    bias: bool = False
    priors: tuple[float, ...] = ()
    nodes: str = "table"
    edge_dropout: float = 0.1
    regularisation: float = 1e-6
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    warmup: float = 0.1
    batch_size: int | None = 1024
    epochs: int = 100
    evaluate_every: int = 1
    patience: int | None = None
    select: str = "accuracy"
    ties: bool = True
    strengths: str = "levels"

    def __post_init__(self):
        """Raises UserError if fields contradict each other."""
        if self.layer not in LAYERS:
            raise UserError(f"GCFConfig.layer is {self.layer!r}; write one of {', '.join(LAYERS)}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"GCFConfig.{name} is {getattr(self, name)!r}; write one of {known}")
        if not all(0 < prior < float("inf") for prior in self.priors):
            raise UserError(f"GCFConfig.priors is {self.priors}; give finite numbers above 0, or () for none")
        if self.priors and (self.layer, self.readout or "sum") != ("linear", "sum"):
            raise UserError(
                f"GCFConfig.priors need layer linear and readout sum, not {self.layer} and {self.readout!r}; for other "
                "layers begin with fast_config or paper_config, which have none"
            )
        if self.bias and not self.priors:
            raise UserError("GCFConfig.bias is True without priors, which it needs too; give some, or leave it out")
        if self.nodes in ("text", "both") and not self.priors:
            raise UserError(f"GCFConfig.nodes is {self.nodes!r}, which needs priors; see linear_config")
        if self.dim < 1 or self.num_layers < 0:
            raise UserError(f"GCFConfig.dim is {self.dim}, num_layers {self.num_layers}; give at least 1 and 0")
        if not 0 <= self.edge_dropout < 1:
            raise UserError(f"GCFConfig.edge_dropout is {self.edge_dropout}; it must lie in [0, 1)")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"GCFConfig.batch_size is {self.batch_size}; give at least 1, or None for all pairs")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"GCFConfig.patience is {self.patience}; give at least 1, or None to never stop early")
        if self.epochs < 1 or self.evaluate_every < 1 or self.epochs % self.evaluate_every:
            raise UserError(
                f"GCFConfig.epochs is {self.epochs} and evaluate_every {self.evaluate_every}; "
                "give positive numbers of which the second divides the first"
            )


def paper_config(**changes: Any) -> GCFConfig:
    """The paper's recipe: AdamW 1e-4, batches of 1 024 pairs, 100 epochs. `changes` replace fields."""
    return dataclasses.replace(GCFConfig(), **changes)


def fast_config(**changes: Any) -> GCFConfig:
    """A few dozen full-batch steps of AdamW at 1e-2; `changes` replace fields.

    On votes without noise of no less accuracy than `reference`. With many wrong votes at D = 512 the layer `gcf` learns
    nothing by it that carries over to new pairs; `normed` does (results/bench.json, gcf_paper_size).
    """
    quick = {"learning_rate": 1e-2, "batch_size": None, "epochs": 40, "evaluate_every": 2, "patience": 8}
    return paper_config(**{**quick, **changes})


def linear_config(**changes: Any) -> GCFConfig:
    """The recipe to use: the layer `linear`, a bias per response, and a prior that validation votes choose.

    People of many votes get an embedding of their own by it, and people of few one by their neighbours' votes, whatever
    share of the votes is wrong. `changes` replace fields.
    """
    own = {
        "nodes": "auto",
        "layer": "linear",
        # On Jester 64 cost people of 40 votes a point and new people two; priors keep more from doing harm.
        "dim": 128,
        "num_layers": 2,
        "bias": True,
        "priors": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        "edge_dropout": 0.0,
        "regularisation": 0.0,
        "weight_decay": 0.0,
        "learning_rate": 3e-2,
        "warmup": 0.05,
        "epochs": 200,
        "evaluate_every": 5,
        "patience": 8,
        "select": "loss",
    }
    return fast_config(**{**own, **changes})
