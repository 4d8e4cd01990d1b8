"""Votes of Chatbot Arena: its published sets, and the logs of FastChat's server.

    {"conversation_a": [{role, content}], "conversation_b": [...], "winner": "model_a", "judge": "...", "tstamp": ...}
    {"type": "leftvote", "states": [{"roles": [...], "messages": [[role, text]], "offset": 0}, {...}], "tstamp": ...}

Schemas: lmsys/chatbot_arena_conversations, lmarena-ai/arena-human-preference-100k and -140k; fastchat.serve's
gradio_block_arena_anony (lm-sys/FastChat). A vote on dialogues that part before the last reply prefers no reply to
one prompt: it is left out and counted. A log knows its voters by address alone: columns user=ip takes that as the user.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

_VOTES = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbad_vote": "both_bad"}
_USERS = ("user", "judge", "judge_hash", "user_id", "evaluation_session_id")


def is_record(value: dict[str, Any]) -> bool:
    """Whether a row is a vote of Chatbot Arena."""
    return {"conversation_a", "conversation_b"} <= value.keys() or (_type(value) in _VOTES and "states" in value)


def votes(value: dict[str, Any], columns: Mapping[str, str], note: Any, left_out: Counter[str]) -> list[dict[str, Any]]:
    """One vote, or none."""
    if "conversation_a" not in value and "type" in value and _type(value) not in _VOTES:
        left_out[f"lines of type {_type(value)}"] += 1
        return []
    if "states" in value and "conversation_a" not in value:
        states = value["states"] if isinstance(value["states"], list) else []
        sides, winner = [_messages(state) for state in states], _VOTES.get(_type(value))
    else:
        sides, winner = [_parsed(value.get(f"conversation_{side}")) for side in "ab"], value.get("winner")
    if len(sides) != 2 or not all(isinstance(side, list) and side for side in sides):
        note("conversation_a", "no two dialogues", "give two lists of {role, content}")
        return []
    if sides[0][:-1] != sides[1][:-1]:
        left_out["votes on dialogues that part before the last reply"] += 1
        return []
    named = [columns["user"]] if "user" in columns else _USERS
    user = next((value[name] for name in named if value.get(name) is not None), None)
    row = {"responses": sides, "winner": winner, "time": value.get("tstamp", value.get("timestamp"))}
    return [row if user is None else {"user": str(user), **row}]


def _type(value: dict[str, Any]) -> str:
    return str(value.get("type"))[:20]


def _parsed(value: Any) -> Any:
    """Messages, also of a JSON text, as the set of 100k has them; counts of tokens are no part of a dialogue."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    return [
        {key: item for key, item in one.items() if key != "num_tokens"} if isinstance(one, dict) else one
        for one in found
    ]


def _messages(state: Any) -> Any:
    """Messages of FastChat's state: pairs of a speaker and a text, of which the first `offset` were not said here."""
    if not isinstance(state, dict) or not isinstance(state.get("messages"), list):
        return None
    asks = (state.get("roles") or ["USER"])[0] if isinstance(state.get("roles") or [], list) else "USER"
    offset = state.get("offset") if isinstance(state.get("offset"), int) else 0
    pairs = [one for one in state["messages"][offset:] if isinstance(one, list) and len(one) == 2]
    return [{"role": "user" if speaker == asks else "assistant", "content": text} for speaker, text in pairs]
