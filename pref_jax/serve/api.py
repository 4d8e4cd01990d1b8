"""/v1: scores, votes, users, questions, pools, the model; `insight` has what is concluded from votes."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from typing import Any

from pref_jax.json_fields import decimals
from pref_jax.serve import schemas
from pref_jax.serve.faults import RefusedError, unknown_user
from pref_jax.serve.http import Call, Reply, Route, validated
from pref_jax.serve.pools import text_pairs
from pref_jax.serve.schemas import Id, as_prompt
from pref_jax.serve.service import Scored
from pref_jax.serve.settings import Limits
from pref_jax.serve.store.records import Pair, Vote
from pref_jax.serve.texts import texts_of


def need_short(limits: Limits, prompt: Any, responses: Sequence[str]) -> None:
    """Raises `RefusedError` for too many or too long texts."""
    if len(responses) > limits.texts:
        raise RefusedError(422, f"{len(responses)} texts; send at most {limits.texts} at a time", where="responses")
    parts = [prompt] if isinstance(prompt, str) else [json.dumps(message) for message in prompt]
    for where, length in (("prompt", sum(map(len, parts))), ("responses", max(map(len, responses)))):
        if length > limits.characters:
            fix = f"send at most {limits.characters} (the model reads {where} as far as its own limit goes)"
            raise RefusedError(422, f"a text of {length} characters; {fix}", where=where)


def user_of(call: Call) -> str:
    """The user in the path, if the client may touch them."""
    user = validated(Id, call.params["user"], 422)
    call.client.need_user(user)
    return user


async def scored(call: Call, *, uncertainty: bool) -> Scored:
    """Scores of a request of /v1."""
    body = call.body
    prompt = as_prompt(body.prompt)
    need_short(call.front.service.limits, prompt, body.responses)
    shared, user = body.unknown == "shared", body.user
    texts = texts_of([prompt] * len(body.responses), body.responses)
    if user is not None and not call.client.may_touch(user):
        if not shared:
            raise unknown_user()
        found = await call.front.service.score([None] * len(texts), texts, uncertainty=uncertainty)
        return found._replace(unknown=[True] * len(texts))
    return await call.front.service.score([user] * len(texts), texts, uncertainty=uncertainty, shared=shared)


def told(call: Call, found: Scored, *, uncertainty: bool) -> dict[str, Any]:
    """Scores as an answer."""
    return {
        "rewards": decimals(found.rewards),
        "deviations": decimals(found.deviations) if uncertainty else None,
        "truncated": [read.truncated for read in found.read],
        "tokens": [read.tokens for read in found.read],
        "shared": any(found.unknown),
        "model": call.front.version,
    }


async def score(call: Call) -> Reply:
    """Rewards."""
    uncertainty = call.body.uncertainty
    return Reply(told(call, await scored(call, uncertainty=uncertainty), uncertainty=uncertainty))


async def rank(call: Call) -> Reply:
    """Numbers of the responses, best first."""
    found = await scored(call, uncertainty=False)
    ranking = (-found.rewards).argsort(kind="stable").tolist()
    return Reply({**told(call, found, uncertainty=False), "ranking": ranking})


# --- votes ---


async def add_votes(call: Call) -> Reply:
    """Stores votes."""
    user, service = user_of(call), call.front.service
    given = call.body.votes if isinstance(call.body, schemas.VotesBody) else [call.body]
    if len(given) > service.limits.votes:
        raise RefusedError(422, f"{len(given)} votes; send at most {service.limits.votes} at a time", where="votes")
    for vote in given:
        need_short(service.limits, as_prompt(vote.prompt), (vote.first, vote.second))
    if wait := call.front.pace.wait(user, len(given)):
        most = service.limits.votes_a_minute
        raise RefusedError(429, f"more than {most} votes a minute of one user; come back later", retry=wait)
    votes = [_vote(vote) for vote in given]
    added = await service.add_votes(user, votes)
    return Reply({"stored": list(added.stored), "repeated": list(added.repeated)})


def _vote(body: schemas.VoteBody) -> Vote:
    fields = {name: getattr(body, name) for name in schemas.VoteBody.model_fields}
    return Vote(**fields | {"id": body.id or uuid.uuid4().hex, "prompt": as_prompt(body.prompt)})


async def list_votes(call: Call) -> Reply:
    """A page of votes."""
    user, page = user_of(call), call.query
    await _need_known(call, user)
    service = call.front.service
    found = await service.ask_store(service.store.votes, user, page.after)
    names = schemas.StoredVoteAnswer.model_fields
    some = [{name: getattr(vote, name) for name in names} for vote in found[: page.limit]]
    return Reply({"votes": some, "next": some[-1]["number"] if len(found) > page.limit else None})


async def _need_known(call: Call, user: str) -> None:
    if not await call.front.service.current(user):
        raise unknown_user()


async def remove_vote(call: Call) -> Reply:
    """Takes a vote back."""
    user, service = user_of(call), call.front.service
    vote = validated(Id, call.params["vote"], 422)
    if not await service.ask_store(service.store.remove_vote, user, vote):
        raise RefusedError(404, "no such vote of this user", where="vote")
    return Reply({"removed": vote})


# --- users ---


async def list_users(call: Call) -> Reply:
    """A page of users."""
    service, page = call.front.service, call.query
    found = await service.ask_store(service.store.users, page.after, page.limit)
    rows = [{"id": user.id, "votes": user.votes} for user in found]
    return Reply({"users": rows, "next": found[-1].id if len(found) == page.limit else None})


async def describe_user(call: Call) -> Reply:
    """What is known of a user."""
    return Reply(await call.front.service.describe(user_of(call)))


async def remove_user(call: Call) -> Reply:
    """Removes a user."""
    user = user_of(call)
    if call.client.user is None:
        call.client.need("admin")
    await _need_known_or_voted(call, user)
    removed, model = await call.front.service.remove_user(user)
    call.front.pace.forget(user)
    return Reply({**removed._asdict(), "model": model._asdict()})


async def _need_known_or_voted(call: Call, user: str) -> None:
    """A user whose votes were all taken back can be removed too."""
    service = call.front.service
    if not await service.current(user) and not await service.ask_store(service.store.revision, user):
        raise unknown_user()


# --- questions ---


def _pair(body: schemas.PairBody) -> Pair:
    prompt = as_prompt(body.prompt)
    said = json.dumps([prompt, body.first, body.second]).encode()
    return Pair(
        id=body.id or hashlib.sha256(said).hexdigest()[:32], prompt=prompt, first=body.first, second=body.second
    )


def _pairs(call: Call, given: Sequence[schemas.PairBody]) -> list[Pair]:
    limits = call.front.service.limits
    if len(given) > limits.pairs:
        raise RefusedError(422, f"{len(given)} pairs; send at most {limits.pairs}", where="pairs")
    for pair in given:
        need_short(limits, as_prompt(pair.prompt), (pair.first, pair.second))
    return [_pair(pair) for pair in given]


def _pair_told(pair: Pair) -> dict[str, Any]:
    return {"id": pair.id, "prompt": pair.prompt, "first": pair.first, "second": pair.second}


async def ask(call: Call) -> Reply:
    """The pairs to show next."""
    user, service, body = user_of(call), call.front.service, call.body
    if body.pool is not None:
        pairs = await service.ask_store(service.pools.get, body.pool)
        if not pairs:
            raise RefusedError(404, "no such pool; make it with POST /v1/pools/NAME", where="pool")
    else:
        pairs = text_pairs(_pairs(call, body.candidates))
    found = await service.questions(user, pairs, body.count)
    rows = [{**_pair_told(one.pair), "information": one.information, "asked": one.rule} for one in found.pairs]
    about = {"why": found.why, "considered": found.considered, "left": found.left, "model": call.front.version}
    return Reply({"pairs": rows, **about})


async def add_pairs(call: Call) -> Reply:
    """Puts pairs into a pool."""
    service, pool = call.front.service, validated(Id, call.params["pool"], 422)
    pairs = _pairs(call, call.body.pairs)
    await service.check_pairs(pairs)
    there = (await service.ask_store(service.store.pools)).get(pool, 0)
    if there + len(pairs) > service.limits.pairs:
        raise RefusedError(422, f"the pool would have more than {service.limits.pairs} pairs; make another one")
    added = await service.ask_store(service.store.add_pairs, pool, pairs)
    return Reply({"added": added, "pairs": (await service.ask_store(service.store.pools)).get(pool, 0)})


async def list_pairs(call: Call) -> Reply:
    """A page of a pool."""
    service, page, pool = call.front.service, call.query, validated(Id, call.params["pool"], 422)
    found = await service.ask_store(service.store.pairs, pool, page.after, page.limit)
    if not found and not page.after:
        raise RefusedError(404, "no such pool", where="pool")
    rows = [_pair_told(pair) for pair in found]
    return Reply({"pairs": rows, "next": found[-1].id if len(found) == page.limit else None})


async def list_pools(call: Call) -> Reply:
    """All pools."""
    return Reply({"pools": await call.front.service.ask_store(call.front.service.store.pools)})


async def remove_pool(call: Call) -> Reply:
    """Removes a pool."""
    service, pool = call.front.service, validated(Id, call.params["pool"], 422)
    removed = await service.ask_store(service.store.remove_pool, pool)
    service.pools.drop(pool)
    if not removed:
        raise RefusedError(404, "no such pool", where="pool")
    return Reply({"removed": removed})


async def model(call: Call) -> Reply:
    """What is served."""
    front, limits = call.front, call.front.service.limits
    bounds = {name: getattr(limits, name) for name in schemas.LimitsAnswer.model_fields}
    return Reply({**front.facts, "version": front.version, "name": front.name, "limits": bounds})


_USER, _POOL = "/v1/users/{user}", "/v1/pools/{pool}"
ROUTES = (
    Route("POST", "/v1/rank", rank, "Rank responses for a user", schemas.RankAnswer, "score", schemas.RankRequest),
    Route(
        "POST",
        f"{_USER}/votes",
        add_votes,
        "Store one vote or several; durable when answered",
        schemas.AddedAnswer,
        "vote",
        schemas.OneOrSeveral,
    ),
    Route("GET", f"{_USER}/votes", list_votes, "Votes in order", schemas.VotesAnswer, "vote", None, schemas.Page),
    Route("DELETE", f"{_USER}/votes/{{vote}}", remove_vote, "Take a vote back", schemas.VoteRemovedAnswer, "vote"),
    Route("POST", f"{_USER}/ask", ask, "Pairs to show next", schemas.AskAnswer, "vote", schemas.AskRequest),
    Route("GET", _USER, describe_user, "What is known of a user", schemas.UserAnswer, "vote"),
    Route("DELETE", _USER, remove_user, "Remove a user and all that is kept", schemas.UserRemovedAnswer, "vote"),
    Route("GET", "/v1/users", list_users, "Users who voted", schemas.UsersAnswer, "admin", None, schemas.NamedPage),
    Route("POST", _POOL, add_pairs, "Put pairs into a pool", schemas.PairsAddedAnswer, "admin", schemas.PairsBody),
    Route("GET", _POOL, list_pairs, "Pairs of a pool", schemas.PairsAnswer, "vote", None, schemas.NamedPage),
    Route("DELETE", _POOL, remove_pool, "Remove a pool; votes stay", schemas.PoolRemovedAnswer, "admin"),
    Route("GET", "/v1/pools", list_pools, "Pools", schemas.PoolsAnswer, "vote"),
    Route("GET", "/v1/model", model, "What is served", schemas.ModelAnswer),
)
