"""Rotary positions between `LMConfig` and Hugging Face's `config.json`, by the precedence of transformers 5.

A field `rope_scaling` takes the place of `rope_parameters`; in Gemma 3, OLMo 3 and ModernBERT, whose kinds of layers
turn in different ways, it is laid over the record of each kind that it concerns.
"""

import math
from collections.abc import Mapping
from typing import Any

from pref_jax.errors import Faults
from pref_jax.json_fields import brief, is_number, is_whole
from pref_jax.lm.config import LMConfig
from pref_jax.lm.config_parts import RopeScaling

Raw = Mapping[str, Any]

# Field of the whole model's base for each kind of layer, and the default; the kinds that `rope_scaling` concerns.
_NESTED: dict[str, tuple[dict[str, tuple[str, float]], tuple[str, ...]]] = {
    "gemma3_text": (
        {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)},
        ("full_attention",),
    ),
    # Its class takes nothing from beside the records.
    "gemma4_text": ({"full_attention": ("", 1e6), "sliding_attention": ("", 1e4)}, ()),
    "modernbert": (
        {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 1e4)},
        ("full_attention", "sliding_attention"),
    ),
    # Sliding layers turn by the class's own base, whatever stands beside the records.
    "olmo3": (
        {"full_attention": ("rope_theta", 500_000.0), "sliding_attention": ("", 500_000.0)},
        ("full_attention",),
    ),
}
# What a record may hold beside the kind, all kinds together; `finetuned` tells how a model came about.
_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
_NUMBERS += ("mscale", "mscale_all_dim", "attention_factor", "partial_rotary_factor")
_FACTORS = ("short_factor", "long_factor")
_OWN = {"ministral3": {"llama_4_scaling_beta", "max_position_embeddings"}}
# Pictures have positions in three directions; of a text all three are the same.
_OWN |= {"qwen3_5_text": {"mrope_section", "mrope_interleaved"}}
# Families of which part of a head may stay as it is.
_PARTIAL = ("phi3", "qwen3_5_text")
_KNOWN = {*_NUMBERS, *_FACTORS, "original_max_position_embeddings", "truncate", "rope_type", "type", "finetuned"}
_SOME_KINDS = {"phi3": ("default", "longrope"), "gemma4_text": ("default", "proportional")}
_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def fields(family: str) -> set[str]:
    """The names under which a family's `config.json` speaks of rotary positions."""
    bases = [name for name, _ in _NESTED[family][0].values() if name] if family in _NESTED else ["rope_theta"]
    return {"rope_parameters", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings", *bases}


def read(raw: Raw, faults: Faults, where: str) -> dict[str, Any]:
    """Fields of `LMConfig`; notes what cannot be honoured.

    Args:
      raw: of a known family, without nulls.
      faults: gets the faults.
      where: stands before the names of fields.
    """
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(name, {}), Mapping):
            faults.add(f"{where}: {name}", f"is {brief(raw[name])}", 'give an object such as {"rope_type": "default"}')
            return {}
    for name in fields(raw["model_type"]) - {"rope_parameters", "rope_scaling"}:
        if name in raw and not (is_number(raw[name]) and raw[name] > 0):
            faults.add(f"{where}: {name}", f"is {brief(raw[name])}", "give a number above 0")
            return {}
    if raw["model_type"] in _NESTED:
        return _read_nested(raw, faults, where)
    place = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = {"rope_theta": raw.get("rope_theta", 10_000.0), **raw.get(place, {})}
    # One number beside the record takes precedence over that in it.
    if "original_max_position_embeddings" in raw:
        rope["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    theta, scaling = _record(raw, rope, faults, f"{where}: {place}")
    found = {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": None, **_reach(raw, scaling)}
    return found | _rotated(raw, rope, faults, f"{where}: {place}")


def _rotated(raw: Raw, rope: Raw, faults: Faults, where: str) -> dict[str, int]:
    """How many of a head's features turn."""
    factor = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1))
    if factor == 1 or not is_number(factor):
        return {}
    if raw["model_type"] not in _PARTIAL:
        faults.add(f"{where}.partial_rotary_factor", "only part of a head is turned", "use another checkpoint")
        return {}
    whole = raw.get("head_dim") or raw["hidden_size"] // max(raw["num_attention_heads"], 1)
    return {"rotary_dim": int(whole * factor)}


def _read_nested(raw: Raw, faults: Faults, where: str) -> dict[str, Any]:
    bases, stretched = _NESTED[raw["model_type"]]
    records = raw.get("rope_parameters", {})
    if not stretched:
        _check_records(raw, records, faults, where)
    for name in sorted(records.keys() - bases.keys()):
        fix = f"put it into rope_parameters.{', rope_parameters.'.join(bases)}"
        faults.add(f"{where}: rope_parameters.{name}", "stands where transformers does not read it", fix)
    found = []
    for kind, (base, default) in bases.items():
        own, place = records.get(kind) or {}, f"{where}: rope_parameters.{kind}"
        if not isinstance(own, Mapping):
            faults.add(place, f"is {brief(own)}", 'give an object such as {"rope_type": "default"}')
            own = {}
        laid_over = raw.get("rope_scaling", {}) if kind in stretched else {}
        rope = {**own, **laid_over}
        if rope.get("truncate") is False:
            faults.add(f"{place}.truncate", "transformers does not read it here", "leave it out")
        found.append(_record(raw, {"rope_theta": raw.get(base, default), **rope}, faults, place))
        if rope.get("rope_type") != "proportional":
            _rotated(raw if len(found) == 1 else {"model_type": raw["model_type"]}, rope, faults, place)
    (theta, scaling), (local, near) = found
    fields = {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local, "local_rope_scaling": near}
    return fields | _reach(raw, scaling, near)


def _check_records(raw: Raw, records: Raw, faults: Faults, where: str) -> None:
    """Notes what records lack where their class fills in nothing."""
    if "rope_scaling" in raw:
        faults.add(f"{where}: rope_scaling", "this family has it for each kind of layer", "give rope_parameters")
    for kind in _NESTED[raw["model_type"]][0]:
        own = records.get(kind)
        if not isinstance(own, Mapping) or "rope_theta" not in own or "rope_type" not in own:
            fix = "give an object with rope_type and rope_theta"
            faults.add(f"{where}: rope_parameters.{kind}", f"is {brief(own)}", fix)


def _reach(raw: Raw, *scalings: RopeScaling | None) -> dict[str, int]:
    """Under longrope, positions end where the short factors do: beyond, a text's state would depend on its neighbours'
    lengths, by which transformers picks the factors of a batch.
    """
    ends = [
        scaling.original_max_positions for scaling in scalings if scaling is not None and scaling.kind == "longrope"
    ]
    return {"max_positions": min([raw["max_position_embeddings"], *ends])} if ends else {}


def _record(raw: Raw, rope: Raw, faults: Faults, where: str) -> tuple[float, RopeScaling | None]:
    """Base and stretching of one record; notes what is wrong with it."""
    rope = {name: value for name, value in rope.items() if value is not None or name == "factor"}
    kind, before = rope.get("rope_type", rope.get("type", "default")), len(faults)
    kinds = _SOME_KINDS.get(raw["model_type"], _KINDS)
    if kind not in kinds:
        faults.add(f"{where}.rope_type", f"{brief(kind)} is unknown", f"use a checkpoint with {', '.join(kinds)}")
    for name in sorted(rope.keys() - _KNOWN - _OWN.get(raw["model_type"], set())):
        faults.add(f"{where}.{name}", "no rotary position here has it", "use another checkpoint, or leave it out")
    for name in (*_NUMBERS, "llama_4_scaling_beta"):
        if name in rope and not is_number(rope[name]) and not (name == "factor" and rope[name] is None):
            faults.add(f"{where}.{name}", f"is {brief(rope[name])}", "give a number")
    if not isinstance(rope.get("truncate", True), bool):
        faults.add(f"{where}.truncate", f"is {brief(rope['truncate'])}", "give true or false")
    original: Any = rope.get("original_max_position_embeddings", raw["max_position_embeddings"])
    if not is_whole(original) or original < 1:
        fix = "give a whole number above 0"
        faults.add(f"{where}.original_max_position_embeddings", f"is {brief(original)}", fix)
    if len(faults) > before:
        return 1.0, None
    if rope["rope_theta"] <= 0:
        faults.add(f"{where}.rope_theta", f"is {rope['rope_theta']}", "give a number above 0")
    return float(rope["rope_theta"]), None if kind == "default" else _scaling(raw, kind, rope, original, faults, where)


def _scaling(raw: Raw, kind: Any, rope: Raw, original: int, faults: Faults, where: str) -> RopeScaling | None:
    """The stretching of a record whose values are of the right types."""
    needed = {"llama3": ("low_freq_factor", "high_freq_factor"), "longrope": _FACTORS}.get(kind, ())
    factor = rope.get("factor")
    if factor is None and (kind == "longrope" or (kind == "yarn" and "factor" in rope)):
        factor = raw["max_position_embeddings"] / original
    factor = 1.0 if kind == "proportional" and factor is None else factor
    missing = [name for name in needed if name not in rope] + (["factor"] if factor is None else [])
    for name in missing:
        faults.add(f"{where}.{name}", "missing", f"give what {kind} needs")
    for name in _FACTORS if kind == "longrope" and not missing else ():
        if not isinstance(rope[name], list) or not all(is_number(one) and one > 0 for one in rope[name]):
            faults.add(f"{where}.{name}", f"is {brief(rope[name])}", "give a list of numbers above 0")
            missing.append(name)
    if missing or factor is None:
        return None
    own: dict[str, Any] = {"original_max_positions": original}
    if kind == "llama3":
        own |= {name: float(rope[name]) for name in needed}
        if own["high_freq_factor"] <= own["low_freq_factor"]:
            faults.add(f"{where}.high_freq_factor", "is not above low_freq_factor", "give a higher one")
    if kind == "yarn":
        # Zero stands for the default here, as it does there.
        own |= {"beta_fast": float(rope.get("beta_fast") or 32), "beta_slow": float(rope.get("beta_slow") or 1)}
        own |= {"truncate": rope.get("truncate", True)}
    if kind == "proportional":
        own["share"] = float(rope.get("partial_rotary_factor", 1.0))
        if not 0 <= own["share"] <= 1:
            faults.add(f"{where}.partial_rotary_factor", f"is {own['share']}", "give a number from 0 to 1")
    if kind == "longrope":
        own |= {name: tuple(float(one) for one in rope[name]) for name in _FACTORS}
    if kind in ("yarn", "longrope"):
        own["attention_factor"] = _attention_factor(kind, rope, float(factor), original)
    own["query_beta"] = float(rope.get("llama_4_scaling_beta") or 0)
    return RopeScaling(kind=kind, factor=float(factor), **own)


def _attention_factor(kind: str, rope: Raw, factor: float, original: int) -> float:
    """What cosines and sines are multiplied by where the record does not say (YaRN, arXiv 2309.00071, section 3.4)."""
    if "attention_factor" in rope:
        return float(rope["attention_factor"])
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    whole, rest = rope.get("mscale"), rope.get("mscale_all_dim")
    if whole and rest:
        return (0.1 * whole * math.log(factor) + 1) / (0.1 * rest * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def write(config: LMConfig) -> dict[str, Any]:
    """The fields of `config.json` that transformers (4 or 5) and `read` take for the same."""
    scaling = None if config.rope_scaling is None else _write_scaling(config.rope_scaling)
    full = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})}
    if config.rotary_dim:
        share = config.rotary_dim / config.head_dim
        # Readers round down.
        full["partial_rotary_factor"] = max(
            share, math.nextafter(share, 1) if int(share * config.head_dim) < config.rotary_dim else 0
        )
    if config.family not in _NESTED:
        partial = {"partial_rotary_factor": full["partial_rotary_factor"]} if config.rotary_dim else {}
        found = {"rope_theta": config.rope_theta, "rope_scaling": scaling, "rope_parameters": full, **partial}
        original = config.rope_scaling.original_max_positions if config.rope_scaling else None
        # The class of Phi 3 has a length of its own, which takes precedence.
        return found | ({"original_max_position_embeddings": original} if config.family == "phi3" and original else {})
    bases, stretched = _NESTED[config.family]
    (wide, _), (local, default) = bases["full_attention"], bases["sliding_attention"]
    theta = default if config.local_rope_theta is None else config.local_rope_theta
    near = None if config.local_rope_scaling is None else _write_scaling(config.local_rope_scaling)
    own = {"rope_theta": theta, **(near or {"rope_type": "default"})}
    # For readers that know no records, and only where all kinds of layers that it concerns agree.
    old = scaling if "sliding_attention" not in stretched or scaling == near else None
    records = {"full_attention": full, "sliding_attention": own}
    found = {wide: config.rope_theta, local: theta, "rope_parameters": records}
    found |= {"rope_scaling": old} if stretched else {}
    return {name: value for name, value in found.items() if name}


def _write_scaling(rope: RopeScaling) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind in ("linear", "dynamic"):
        return found
    if rope.kind == "proportional":
        return found | {"partial_rotary_factor": rope.share}
    own = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor"),
        "longrope": (*_FACTORS, "attention_factor"),
    }[rope.kind]
    values = {name: getattr(rope, name) for name in own}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    beta = {"llama_4_scaling_beta": rope.query_beta} if rope.query_beta else {}
    return found | values | beta | {"original_max_position_embeddings": rope.original_max_positions}
