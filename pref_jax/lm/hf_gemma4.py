"""What Gemma 4's `config.json` has besides: the sizes of its two kinds of layers, shared keys, per-layer embeddings.

Files of the hub give the sizes of layers that see everything as `global_head_dim` and `num_global_key_value_heads`;
those written by transformers give them for each such layer, as `per_layer_config`, which takes precedence.
"""

from collections.abc import Mapping
from typing import Any

from pref_jax.errors import Faults
from pref_jax.json_fields import COUNT, FLAG, RECORD, WHOLE, Kind, brief, is_whole
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import Gemma4

Raw = Mapping[str, Any]

KINDS: dict[str, Kind] = {
    **dict.fromkeys(("global_head_dim", "num_global_key_value_heads", "vocab_size_per_layer_input"), COUNT),
    **dict.fromkeys(("hidden_size_per_layer_input", "num_kv_shared_layers"), WHOLE),
    **dict.fromkeys(("attention_k_eq_v", "use_double_wide_mlp", "enable_moe_block"), FLAG),
    "per_layer_config": RECORD,
    "use_bidirectional_attention": (lambda value: value in ("all", "vision"), 'give "all" or "vision"'),
}
_SIZES = ("head_dim", "num_key_value_heads")


def slides(raw: Raw) -> tuple[bool, ...]:
    """Which layers see only what is near; the last never, whatever the file says, as in transformers."""
    kinds = raw.get("layer_types")
    near = [kind == "sliding_attention" for kind in kinds] if kinds else None
    near = near or [bool((layer + 1) % 6) for layer in range(raw["num_hidden_layers"])]
    return (*near[:-1], False)


def _sizes(raw: Raw) -> list[tuple[int, int]]:
    """Head width and key heads of each layer."""
    usual = (raw["head_dim"], raw["num_key_value_heads"])
    given = raw.get("per_layer_config")
    if given is None:
        kv = raw.get("num_global_key_value_heads") if raw["attention_k_eq_v"] else None
        return [usual if near else (raw["global_head_dim"], kv or usual[1]) for near in slides(raw)]
    # Of ten layers and more, transformers writes 05.
    given = {int(layer): sizes for layer, sizes in given.items()}
    own = [given.get(layer, {}) for layer in range(raw["num_hidden_layers"])]
    return [tuple(one.get(name, default) for name, default in zip(_SIZES, usual, strict=True)) for one in own]


def refuse(raw: Raw, faults: Faults, where: str) -> None:
    """Notes what a checkpoint has and this code has not.

    Args:
      raw: with the defaults, of checked types.
      faults: gets the faults.
      where: stands before the names of fields.
    """
    if raw["enable_moe_block"]:
        faults.add(
            f"{where}: enable_moe_block", "is true: routed experts of Gemma 4 are not supported", "use a dense one"
        )
    vocabularies = [raw[name] for name in ("vocab_size", "vocab_size_per_layer_input")]
    if raw["hidden_size_per_layer_input"] and len(set(vocabularies)) > 1:
        had = f"is {vocabularies[1]}, but vocab_size is {vocabularies[0]}"
        faults.add(f"{where}: vocab_size_per_layer_input", had, "use a checkpoint whose tables are of one length")
    if len(slides(raw)) != raw["num_hidden_layers"]:
        had = f"{len(slides(raw))} for {raw['num_hidden_layers']} layers"
        faults.add(f"{where}: layer_types", had, "give one for each")
        return
    before = len(faults)
    for layer, own in (raw.get("per_layer_config") or {}).items():
        if not (layer.isdecimal() and int(layer) < raw["num_hidden_layers"]):
            fix = f"number layers from 0 to {raw['num_hidden_layers'] - 1}"
            faults.add(f"{where}: per_layer_config.{layer}", "is no layer's number", fix)
        elif not isinstance(own, Mapping) or any(name not in _SIZES or not is_whole(own[name]) for name in own):
            fix = f"give whole numbers for {' and '.join(_SIZES)} and nothing else"
            faults.add(f"{where}: per_layer_config.{layer}", f"is {brief(own)}", fix)
    for near in (True, False) if len(faults) == before else ():
        found = {own for own, slide in zip(_sizes(raw), slides(raw), strict=True) if slide == near}
        if len(found) > 1:
            what = f"has layers of one kind with head_dim and num_key_value_heads {sorted(found)}"
            faults.add(f"{where}: per_layer_config", what, "use a checkpoint whose layers of a kind are alike")


def read(raw: Raw) -> dict[str, Any]:
    """Fields of `LMConfig`, beside those that other decoders have."""
    sizes = dict(zip(slides(raw), _sizes(raw), strict=True))
    head, kv = sizes.get(True, (raw["head_dim"], raw["num_key_value_heads"]))
    full_head, full_kv = sizes[False]
    own = Gemma4(
        full_head_dim=full_head,
        full_kv_heads=full_kv,
        keys_as_values=raw["attention_k_eq_v"],
        shared_layers=raw["num_kv_shared_layers"],
        wide_shared=raw["use_double_wide_mlp"],
        per_layer=raw["hidden_size_per_layer_input"],
    )
    fields = {"head_dim": head, "num_kv_heads": kv, "query_scalar": 1, "gemma4": own}
    # Looking both ways, transformers halves the number, adds 1, and takes that for the farthest token in sight.
    both_ways = raw.get("use_bidirectional_attention") == "all"
    return fields | ({"window": raw["sliding_window"] // 2 + 2} if both_ways else {})


def write(config: LMConfig, own: Gemma4) -> dict[str, Any]:
    """The fields that transformers and `read` take for the same."""
    near = config.sliding_layers or (False,) * config.num_layers
    sizes = dict(zip(_SIZES, (own.full_head_dim, own.full_kv_heads), strict=True))
    return {
        # Without sliding layers it is of no effect, but transformers wants a number.
        "sliding_window": 512
        if not config.window
        else 2 * (config.window - 2)
        if config.bidirectional
        else config.window,
        "global_head_dim": own.full_head_dim,
        "num_global_key_value_heads": own.full_kv_heads,
        "per_layer_config": {str(layer): sizes for layer in range(config.num_layers) if not near[layer]},
        "attention_k_eq_v": own.keys_as_values,
        "num_kv_shared_layers": own.shared_layers,
        "use_double_wide_mlp": own.wide_shared,
        "hidden_size_per_layer_input": own.per_layer,
        "vocab_size_per_layer_input": config.vocab_size,
        "use_bidirectional_attention": "all" if config.bidirectional else None,
        "final_logit_softcapping": config.logit_softcap,
        "enable_moe_block": False,
    }
