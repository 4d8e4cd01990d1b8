"""The reference of the transformer's benchmarks: a reward model of transformers and PEFT, in torch.

Axes: B rows, L length, D features of the transformer, R rank, Z layers.
"""

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pref_jax.errors import UserError

# Our names of the adapted linears and those of each family in transformers.
TARGETS = {
    "llama": {"q_proj": "q_proj", "v_proj": "v_proj"},
    "bert": {"q_proj": "query", "v_proj": "value"},
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Model(NamedTuple):
    """A trunk with LoRA on it, what stands for a text ("last" token or "mean"), and a linear head."""

    trunk: Any
    pooling: str
    head: Any


class Rows(NamedTuple):
    """Texts as torch tensors: ids and mask int64 [B L], the place of each row's last real token int64 [B]."""

    tokens: Any
    mask: Any
    last: Any


def library(name: str) -> Any:
    """torch, transformers or peft, imported when it is needed and not before.

    Raises:
      UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"this benchmark compares with torch, transformers and PEFT; {error.name} is not installed: make parity"
        ) from error


def load(folder: Path, params: Mapping[str, Any], *, rank: int, alpha: float, pooling: str) -> Model:
    """The reward model on a checkpoint, with the values of our trainable parameters; float32, torch's sdpa attention.

    Args:
      folder: the checkpoint.
      params: of `pref_jax.baselines.shared`.
      rank: R.
      alpha: LoRA's products are scaled by alpha / R.
      pooling: "last" or "mean".

    Raises:
      UserError: if torch or PEFT is not installed.
    """
    torch, transformers, peft = library("torch"), library("transformers"), library("peft")
    family = transformers.AutoConfig.from_pretrained(folder).model_type
    with quiet(transformers):
        kind = transformers.LlamaModel if family == "llama" else transformers.BertModel
        own = {} if family == "llama" else {"add_pooling_layer": False, **NO_DROPOUT}
        trunk = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **own)
    names = TARGETS[family]
    lora = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(names.values()))
    # What PEFT reads of the model, transformers means to rename.
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        trunk = peft.get_peft_model(trunk, lora).train()
    head = torch.nn.Linear(trunk.config.hidden_size, 1)
    with torch.no_grad():
        head.weight.copy_(_tensor(params["head"]["w"])[None])
        head.bias.copy_(_tensor(params["head"]["b"]))
        for ours, theirs in names.items():
            adapted = [m for n, m in trunk.named_modules() if n.endswith(f".{theirs}") and hasattr(m, "lora_A")]
            for layer, module in enumerate(adapted):
                shared = params["adapters"][ours]
                module.lora_A["default"].weight.copy_(_tensor(shared["a"][layer]).T)
                module.lora_B["default"].weight.copy_(_tensor(shared["b"][layer]).T)
    return Model(trunk, pooling, head)


def fresh(folder: Path, *, rank: int, alpha: float, pooling: str, device: str, half: bool) -> Model:
    """A reward model of the sizes in a folder's config.json on a device, with weights as they are drawn.

    Args:
      folder: with config.json.
      rank: R, of LoRA on the projections of queries and values.
      alpha: its products are scaled by alpha / R.
      pooling: "last" or "mean".
      device: as torch names it.
      half: whether the frozen weights are bfloat16.

    Raises:
      UserError: if torch or PEFT is not installed.
    """
    torch, transformers, peft = library("torch"), library("transformers"), library("peft")
    config = transformers.AutoConfig.from_pretrained(folder)
    names = list(TARGETS.get(config.model_type, TARGETS["llama"]).values())
    with torch.device(device):
        trunk = transformers.AutoModel.from_config(config, dtype=torch.bfloat16 if half else torch.float32)
        head = torch.nn.Linear(config.hidden_size, 1, dtype=trunk.dtype)
    lora = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return Model(peft.get_peft_model(trunk, lora).train(), pooling, head)


def rows(tokens: np.ndarray, mask: np.ndarray) -> Rows:
    """Texts in torch's hands: int [B L] and bool [B L], padded on the right."""
    torch = library("torch")
    last = torch.from_numpy(mask.sum(axis=1) - 1)
    return Rows(torch.from_numpy(tokens).long(), torch.from_numpy(mask).long(), last)


def pooled(model: Model, texts: Rows) -> Any:
    """One vector per text [B D]."""
    hidden = model.trunk(input_ids=texts.tokens, attention_mask=texts.mask).last_hidden_state
    if model.pooling == "last":
        return hidden[library("torch").arange(len(hidden)), texts.last]
    weight = texts.mask[..., None].to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def forward(model: Model, texts: Rows) -> Callable[[], Any]:
    """A function that computes the texts' rewards [B], without gradients."""
    torch = library("torch")

    def run() -> Any:
        with torch.inference_mode():
            return model.head(pooled(model, texts))[:, 0]

    return run


def train_step(model: Model, texts: Rows, *, rate: float, decay: float) -> Callable[[], float]:
    """A function that takes one step of AdamW on Bradley-Terry's loss and returns that loss.

    Args:
      model: adapters and head are trained in place.
      texts: the chosen texts of all pairs, then the rejected ones.
      rate: learning rate.
      decay: decoupled weight decay.
    """
    torch = library("torch")
    trained = [p for p in (*model.trunk.parameters(), *model.head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=decay)

    def run() -> float:
        chosen, rejected = model.head(pooled(model, texts))[:, 0].chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def _tensor(array: Any) -> Any:
    return library("torch").tensor(np.asarray(array))


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars of saving and loading."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
