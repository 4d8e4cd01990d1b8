"""What /v1 takes and gives: nothing is converted, and fields that nobody knows are refused."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds the character NUL; leave it out")
    return text


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; fill it in")
    return _storable(text)


def _id(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("is blank or holds control characters; write a name in letters that can be printed")
    return name


Id = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_id)]
Response = Annotated[str, StringConstraints(min_length=1), AfterValidator(_said)]
Role = Literal["system", "user", "assistant", "tool"]
Positive = Annotated[float, Field(gt=1e-30, lt=1e30)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """A request of /v1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """An answer of /v1."""

    model_config = ConfigDict(extra="forbid")


class Message(Strict):
    """A message of a chat; further fields are handed to the chat template."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    role: Role
    content: Annotated[str, AfterValidator(_storable)]


Prompt = Response | Annotated[list[Message], Field(min_length=1)]


def as_prompt(given: str | list[Message]) -> Any:
    """A prompt as the model and the store take it."""
    return given if isinstance(given, str) else [message.model_dump() for message in given]


class ScoreRequest(Strict):
    """Responses to score for a user, or for nobody in particular."""

    user: Id | None = None
    prompt: Prompt
    responses: Annotated[list[Response], Field(min_length=1)]
    uncertainty: Annotated[bool, Field(description="also posterior standard deviations")] = False
    unknown: Annotated[
        Literal["refuse", "shared"],
        Field(description="an unknown user is refused (404), or gets the reward of nobody in particular"),
    ] = "refuse"


class ScoreAnswer(Answer):
    """Rewards in the order of the responses; only their differences for one user mean something."""

    rewards: list[float]
    deviations: list[float] | None = None
    truncated: Annotated[list[bool], Field(description="the text was too long and lost its beginning")]
    tokens: Annotated[list[int], Field(description="tokens read of prompt and response together")]
    shared: Annotated[bool, Field(description="the user was not known; this is the reward of nobody in particular")]
    model: str


class RankRequest(Strict):
    """Responses to rank for a user."""

    user: Id | None = None
    prompt: Prompt
    responses: Annotated[list[Response], Field(min_length=1)]
    unknown: Literal["refuse", "shared"] = "refuse"


class RankAnswer(ScoreAnswer):
    """Numbers of the responses, best first; equal ones keep their order."""

    ranking: list[int]


class VoteBody(Strict):
    """What a person said of two responses; only first, second and tie teach."""

    id: Annotated[Id | None, Field(description="the same id again is the same vote; made here if left out")] = None
    prompt: Prompt
    first: Response
    second: Response
    choice: Literal["first", "second", "tie", "both_bad", "skip"]
    strength: Annotated[Positive | None, Field(description="of a preference")] = None
    shown: Annotated[Literal["left", "right"] | None, Field(description="on which side first was shown")] = None
    asked: Annotated[Id | None, Field(description="the rule by which this pair was asked")] = None
    pair: Annotated[Id | None, Field(description="id of the pair in its pool")] = None
    latency: Annotated[float | None, Field(ge=0, lt=1e9, description="seconds")] = None
    page_version: Id | None = None
    model_version: Id | None = None
    time: Annotated[float | None, Field(ge=0, lt=1e11, description="seconds since 1970 by the client's clock")] = None

    @model_validator(mode="after")
    def _means_something(self) -> "VoteBody":
        if self.first == self.second:
            raise ValueError("first and second are the same; ask about two different responses")
        if self.strength is not None and self.choice not in ("first", "second"):
            raise ValueError(f"strength is given with choice {self.choice}; leave it out: nothing was preferred")
        return self


class VotesBody(Strict):
    """Votes that are stored all or none."""

    votes: Annotated[list[VoteBody], Field(min_length=1)]


def _which(given: Any) -> str:
    return "several" if isinstance(given, dict) and "votes" in given else "one"


OneOrSeveral = Annotated[Annotated[VotesBody, Tag("several")] | Annotated[VoteBody, Tag("one")], Discriminator(_which)]


class AddedAnswer(Answer):
    """Ids of votes that were stored, and of those that were there already."""

    stored: list[str]
    repeated: list[str]


class StoredVoteAnswer(Answer):
    """A vote as it is stored."""

    id: str
    prompt: str | list[dict[str, Any]]
    first: str
    second: str
    choice: str
    strength: float | None
    shown: str | None
    asked: str | None
    pair: str | None
    latency: float | None
    page_version: str | None
    model_version: str | None
    time: float | None
    number: Annotated[int, Field(description="place in the order of all votes")]
    received: Annotated[float, Field(description="seconds since 1970 by the server's clock")]


class VotesAnswer(Answer):
    """Votes in order; `next` goes into `after` for the next page, null on the last one."""

    votes: list[StoredVoteAnswer]
    next: int | None


class VoteRemovedAnswer(Answer):
    """The vote is taken back, and its id is free."""

    removed: str


class UserAnswer(Answer):
    """What is known of a user; what `belief` holds depends on the method."""

    user: str
    votes: int
    how: Annotated[str, Field(description="how the reward was found, in words")]
    belief: dict[str, Any]


class ModelRemovalAnswer(Answer):
    """Whether the model knew the user as it was loaded, and whether its folder now knows them no longer."""

    known: bool
    saved: bool
    why: Annotated[str, Field(description="if it was not saved, why, and what to do")]


class UserRemovedAnswer(Answer):
    """What was removed."""

    votes: int
    texts: Annotated[int, Field(description="that no other vote and no pool names")]
    keys: int
    wiped: Annotated[bool | None, Field(description="the database's files are free of it too; null: once it vacuums")]
    model: ModelRemovalAnswer


class UserRow(Answer):
    """A user who has votes."""

    id: str
    votes: int


class UsersAnswer(Answer):
    """Users who have votes, in order of id; `next` goes into `after`."""

    users: list[UserRow]
    next: str | None


class PairBody(Strict):
    """Two responses that can be asked about."""

    id: Annotated[Id | None, Field(description="unique in its pool; made of the texts if left out")] = None
    prompt: Prompt
    first: Response
    second: Response

    @model_validator(mode="after")
    def _differ(self) -> "PairBody":
        if self.first == self.second:
            raise ValueError("first and second are the same; ask about two different responses")
        return self


class PairsBody(Strict):
    """Pairs for a pool."""

    pairs: Annotated[list[PairBody], Field(min_length=1)]


class PairsAddedAnswer(Answer):
    """How many pairs were new, and how many the pool has."""

    added: int
    pairs: int


class PairAnswer(Answer):
    """A pair of a pool."""

    id: str
    prompt: str | list[dict[str, Any]]
    first: str
    second: str


class PairsAnswer(Answer):
    """Pairs in the order in which they were added; `next` goes into `after`."""

    pairs: list[PairAnswer]
    next: str | None


class PoolsAnswer(Answer):
    """Pools with their numbers of pairs."""

    pools: dict[str, int]


class PoolRemovedAnswer(Answer):
    """How many pairs the pool had; votes on them stay."""

    removed: int


class AskRequest(Strict):
    """Where the next pairs to show come from: a pool, or candidates; and how many are wanted."""

    pool: Id | None = None
    candidates: Annotated[list[PairBody] | None, Field(min_length=1)] = None
    count: Annotated[int, Field(ge=1, le=100)] = 1

    @model_validator(mode="after")
    def _one(self) -> "AskRequest":
        if (self.pool is None) == (self.candidates is None):
            raise ValueError("give either pool or candidates")
        return self


class QuestionAnswer(PairAnswer):
    """A pair to show next."""

    information: Annotated[float | None, Field(description="nats that the answer is expected to tell")]
    asked: Annotated[str, Field(description="the rule; goes into the vote")]


class AskAnswer(Answer):
    """Pairs to show next, the best first; none if the user has voted on all."""

    pairs: list[QuestionAnswer]
    why: str
    considered: Annotated[int, Field(description="pairs that were compared")]
    left: Annotated[int, Field(description="pairs that the user has not voted on")]
    model: str


class TasteRequest(Strict):
    """Where pairs come from, and how many are wanted, each of another prompt."""

    pool: Id
    count: Annotated[int, Field(ge=1, le=50)] = 5


class ContrastAnswer(PairAnswer):
    """A pair, and the chance that its first answer is preferred, where one of the two is."""

    own: Annotated[float, Field(description="by the user's reward")]
    low: Annotated[float | None, Field(description="it is believed to be above this with 97.5 %")]
    high: Annotated[float | None, Field(description="and below this")]
    everyone: Annotated[float, Field(description="by the reward of nobody in particular")]


class TasteAnswer(Answer):
    """Pairs on which the user differs most from people in general, the greatest difference first."""

    pairs: list[ContrastAnswer]
    considered: Annotated[int, Field(description="pairs that were compared; 0: the method cannot tell")]
    model: str


class ShareAnswer(Answer):
    """So many of so many, with a 95 % interval of the share (Wilson's)."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None


class AgreementAnswer(Answer):
    """Votes that say the same as the user's earlier one on the pair, and as most others."""

    itself: ShareAnswer
    others: ShareAnswer
    at_least: Annotated[int, Field(description="others that voted on each pair that is compared")]


class LimitsAnswer(Answer):
    """What one client may ask for."""

    body: int
    characters: int
    texts: int
    votes: int
    votes_a_minute: int
    pairs: int
    page: int


class ModelAnswer(Answer):
    """What is served."""

    version: str
    kind: str
    name: str
    users: Annotated[int, Field(description="whom the model knew when it was loaded")]
    base: str
    max_tokens: int
    reads_with_user: Annotated[bool, Field(description="nothing read of a text can be kept for the next user")]
    facts: dict[str, Any]
    limits: LimitsAnswer


class StateAnswer(Answer):
    """Whether the service lives, or is ready."""

    status: str


class FaultBody(Answer):
    """What was wrong, and how to fix it."""

    message: str
    type: str
    param: str | None
    code: int


class FaultAnswer(Answer):
    """A refusal."""

    error: FaultBody


class Page(BaseModel):
    """Of lists whose items are numbered."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    after: Annotated[int, Field(ge=0, lt=1 << 62)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class NamedPage(BaseModel):
    """Of lists whose items have names."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    after: Annotated[str, StringConstraints(max_length=256), AfterValidator(_storable)] = ""
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class StudyQuery(BaseModel):
    """Of the figures of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    days: Annotated[int, Field(ge=1, le=3660)] = 90
    raters: Annotated[int, Field(ge=1, le=1000)] = 2


class StudyAnswer(Answer):
    """Figures of a study; pairs and users of judgements are numbers that are good for this answer alone."""

    users: int
    votes: int
    days: list[dict[str, Any]]
    judgements: list[dict[str, Any]]
    figures: Annotated[dict[str, Any], Field(description="of the last 100 000 votes; see pref_jax/serve/study.py")]
