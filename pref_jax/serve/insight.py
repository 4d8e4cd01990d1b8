"""/v1: what is believed of a user's taste in pairs, agreement with themselves and others, figures of a study."""

from pref_jax.serve import schemas, study, taste
from pref_jax.serve.api import user_of
from pref_jax.serve.faults import RefusedError, unknown_user
from pref_jax.serve.http import Call, Reply, Route

_USER = "/v1/users/{user}"


async def show_taste(call: Call) -> Reply:
    """Pairs on which the user differs most from people in general."""
    user, service, body = user_of(call), call.front.service, call.body
    pairs = await service.ask_store(service.pools.get, body.pool)
    if not pairs:
        raise RefusedError(404, "no such pool; make it with POST /v1/pools/NAME", where="pool")
    if not await service.current(user):
        raise unknown_user()
    found = await taste.contrasts(service, user, pairs, body.count)
    rows = [
        {"id": one.pair.id, "prompt": one.pair.prompt, "first": one.pair.first, "second": one.pair.second}
        | {"own": one.own, "low": one.low, "high": one.high, "everyone": one.everyone}
        for one in found.pairs
    ]
    return Reply({"pairs": rows, "considered": found.considered, "model": call.front.version})


async def show_agreement(call: Call) -> Reply:
    """How far the user agrees with themselves and with most others."""
    user, service = user_of(call), call.front.service
    if not await service.current(user):
        raise unknown_user()
    marks = await service.ask_store(service.store.marks, most=study.MOST, user=user)
    return Reply(await service.ask_store(study.agreement, marks))


async def show_study(call: Call) -> Reply:
    """Figures of a study."""
    service, query = call.front.service, call.query
    found = await service.ask_store(service.store.statistics, patient=True, days=query.days, raters=query.raters)
    marks = await service.ask_store(service.store.marks, patient=True, most=study.MOST)
    figures = await service.ask_store(study.figures, marks, patient=True)
    parts = {"days": [day._asdict() for day in found.days], "judgements": [one._asdict() for one in found.judgements]}
    return Reply({"users": found.users, "votes": found.votes, **parts, "figures": figures})


ROUTES = (
    Route(
        "POST",
        f"{_USER}/taste",
        show_taste,
        "Pairs on which a user differs most from people in general",
        schemas.TasteAnswer,
        "vote",
        schemas.TasteRequest,
    ),
    Route(
        "GET",
        f"{_USER}/agreement",
        show_agreement,
        "Agreement of a user with themselves and with most others",
        schemas.AgreementAnswer,
        "vote",
    ),
    Route("GET", "/v1/study", show_study, "Figures of a study", schemas.StudyAnswer, "admin", None, schemas.StudyQuery),
)
