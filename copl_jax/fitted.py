"""CoPL as a model that one can hold: every user's reward, from the graph's embeddings and the experts they choose.

Of each user it keeps the embedding and which responses, by number, the user compared; of each response its embedding
and a digest of its text. So votes on texts that training knew are recognised without keeping a text.

Axis letters: U users, N responses, P comparisons, C features of an embedding.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64, UInt8

from copl_jax.graph.embedding import NewUsers, embed_new_users
from copl_jax.graph.signed_graph import bucket
from copl_jax.graph.solved_users import COLUMNS, ResponseTable, columns, from_columns, with_texts
from copl_jax.graph.training import normalised
from copl_jax.io import checkpoint, peft
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.training import reader
from pref_jax import personal
from pref_jax.comparisons import Comparisons, concatenate
from pref_jax.data.messages import answer, as_chat
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.graded import read_scale
from pref_jax.lm import parameter_files
from pref_jax.lm.classifier import check_padding
from pref_jax.lm.text_model import TextModel
from pref_jax.mesh import replicated
from pref_jax.personal import Added, PersonalReward, Read, Saved, Scores

DIGEST = 16
# Columns of votes in a saved folder.
VOTES = {
    "user": np.int32,
    "chosen": np.int32,
    "rejected": np.int32,
    "tie": np.uint8,
    "strength": np.float32,
    "choice": np.int32,
}


class Known(NamedTuple):
    """What the model knows of users and responses.

    Attributes:
      ids: U user ids.
      users: float32 [U C] embeddings.
      responses: float32 [N C] embeddings by the graph.
      digests: uint8 [N 16] of the responses' prompts and texts.
      pairs: what users compared; rows of users and of responses, with tie, strength and choice.
      graph: bool [U], who was in the graph, and so can be a new user's neighbour.
      table: what users are solved from, its embeddings those of the responses; None where new ones are made of
        neighbours.
    """

    ids: list[str]
    users: Float32[np.ndarray, "U C"]
    responses: Float32[np.ndarray, "N C"]
    digests: UInt8[np.ndarray, "N 16"]
    pairs: Comparisons
    graph: Bool[np.ndarray, " U"]
    table: ResponseTable | None = None


class OneUser(NamedTuple):
    """What is kept of a user: the embedding [C], and the comparisons by rows of responses."""

    embedding: np.ndarray
    pairs: Comparisons


class CoPL(PersonalReward):
    """A fitted CoPL; see `copl_jax.fit`.

    Attributes:
      kind: "copl".
      text: the base.
      config: the reward model.
      params: experts, gates and head.
      known: users and responses.
      facts: what the fit says of itself, as JSON values.
      scale: how ties and strengths of votes are read; None: all votes are preferences.

    Example:
      model = copl_jax.fit("votes.jsonl", base="Qwen/Qwen3-0.6B")
      model.rank("ada", "How long?", ["Seven minutes.", "It depends."])
    """

    kind: ClassVar[str] = "copl"
    reads_with_user: ClassVar[bool] = True

    def __init__(
        self,
        *,
        text: TextModel,
        config: RewardConfig,
        params: Any,
        known: Known,
        facts: dict[str, Any],
        nobody: Float32[np.ndarray, " C"] | None = None,
    ):
        """A model of parts that fit together; see `copl_jax.fit`.

        Args:
          text: the base.
          config: the reward model.
          params: experts, gates and head.
          known: users and responses.
          facts: JSON values.
          nobody: the embedding of someone of whom nothing is known; None: the mean of the graph's users.
        """
        self.text = self.base = text
        # What later votes of a user of the graph change must not change others: all read the graph as it was here.
        self._graph, self._nobody = known, mean_user(known) if nobody is None else nobody
        self.config, self.params, self.known, self.facts = config, params, known, facts
        self.scale = read_scale(facts.get("scale"))
        self._row = {name: row for row, name in enumerate(known.ids)}
        self._response = {digest.tobytes(): row for row, digest in enumerate(known.digests)}

    @property
    def users(self) -> list[str]:
        """U ids, in the order of the rows."""
        return list(self.known.ids)

    def __repr__(self) -> str:
        mixture, graph = self.config.mixture, int(self.known.graph.sum())
        lines = [
            f"CoPL of {self.base.name}: {len(self.known.ids)} users ({graph} in the graph), "
            f"{len(self.known.responses)} responses",
            f"  {mixture.num_experts} experts of rank {mixture.rank} on {', '.join(mixture.targets)}, top "
            f"{self.config.gate.top_k}; embeddings of {self.known.users.shape[1]} features",
            f"  graph's validation accuracy {self.facts.get('validation_accuracy', 0):.1%}",
        ]
        return "\n".join(lines)

    def rewards(self, users: Sequence[str | None], rows: Any, *, uncertainty: bool = False) -> Scores:
        """Rewards by each user's experts; None: those of the mean of the graph's users, as it was fitted."""
        if uncertainty:
            raise UserError("CoPL has no posterior over rewards, so no uncertainty; leave uncertainty out")
        tokens = self.base.tokenize(rows)
        route = np.array([0 if user is None else self._row[user] + 1 for user in users], np.int32)
        read = reader(self.config, self.base.params, self.params, self._table())
        found = self.base.read_rows(tokens, read, route=route)[:, 0]
        return Scores(found, np.zeros_like(found))

    def _table(self) -> np.ndarray:
        """Embeddings with nobody's first, up to a bucket: more users compile nothing again."""
        table = np.concatenate([self._nobody[None], self.known.users])
        return np.pad(table, ((0, bucket(len(table)) - len(table)), (0, 0)))

    def add_votes(self, user: str, votes: Any, *, read: Read | None = None) -> Added:
        """Embeds the user from all votes on responses that the graph knows.

        Where the graph's nodes have texts (`GCFConfig.nodes`), it knows all responses: new ones are embedded by their
        texts, and kept as numbers and digests. Otherwise votes on them are counted in what it returns and teach
        nothing: the graph has no place for them.
        Where none is known, a new user gets the mean of the graph's users. Ties are read where training had some.
        Neighbours are taken as they were when the model was made or loaded: what others vote later changes nothing.
        """
        del read
        given = vote_rows(votes, user, ties=self.scale is not None and self.scale.scale.ties)
        chosen, rejected = self._place(given.responses).reshape(2, -1)
        there = (chosen >= 0) & (rejected >= 0)
        found = given.comparisons._replace(chosen=chosen, rejected=rejected).take(there)
        added = self.learn(user, found, unread=int((~there).sum()))
        return added._replace(how="; ".join(filter(None, [added.how, given.unused])))

    def _place(self, responses: pa.Table) -> Int64[np.ndarray, " R"]:
        """Rows of responses, new ones added by their texts; -1 for new ones where the graph knows no texts."""
        found = digests(responses)
        known, keys = self.known, [digest.tobytes() for digest in found]
        new = {key: row for row, key in enumerate(keys) if key not in self._response}
        if new and known.table is not None and known.table.text is not None:
            rows = list(new.values())
            features = self.base.states(self.base.tokenize(responses.take(rows)))
            table = with_texts(known.table, features)
            every = np.concatenate([known.digests, found[rows]])
            self.known = known._replace(table=table, responses=table.embeddings, digests=every)
            self._response |= {key: len(known.digests) + place for place, key in enumerate(new)}
        return np.array([self._response.get(key, -1) for key in keys], np.int64)

    def learn(self, user: str, votes: Comparisons, *, unread: int) -> Added:
        """`add_votes` on rows of responses; `unread` more votes are on responses that the graph does not know.

        The rows of users in `votes` are not read. Ties tell which neighbours are like the user, and make none.
        """
        known, new = self.known, user not in self._row
        row = self._row.get(user, len(known.ids))
        given = every_kind(votes._replace(user=np.full(len(votes.user), row)))
        number = np.unique(given.choice, return_inverse=True)[1] + known.pairs.choice.max(initial=-1) + 1
        given = given._replace(choice=np.where(given.choice >= 0, number, -1).astype(np.int32))
        pairs = concatenate([known.pairs, given])
        ids = [*known.ids, user] if new else known.ids
        users = np.concatenate([known.users, np.zeros((int(new), known.users.shape[1]), np.float32)])
        graph = np.concatenate([known.graph, np.zeros(int(new), bool)])
        own, how = pairs.take(pairs.user == row), ""
        if len(votes.user) or new:
            found = self._embed(user, own)
            # Those of the graph have length 1, as whose neighbours they are expects.
            users[row] = (normalised(found.users) if graph[row] else found.users)[0]
            how = f"embedded from {len(own.user)} votes"
            if found.neighbours is not None:
                neighbours = int(found.neighbours[0])
                how += f" and {neighbours} users who chose the same"
                if not neighbours:
                    how = f"no one in the graph chose the same: embedded from {len(own.user)} votes and all its users"
            elif found.no_votes[0]:
                how = "no votes yet: the mean of the graph's users"
        if unread:
            how += f"{'; ' if how else ''}{unread} votes are on responses that training never saw and taught nothing"
        self.known = known._replace(ids=ids, users=users, pairs=pairs, graph=graph)
        self._row[user] = row
        return Added(user, len(own.user), how)

    def _embed(self, user: str, own: Comparisons) -> NewUsers:
        """The user by these votes in the graph as it was made or loaded, whatever others have voted since."""
        graph = self._graph
        base, count = len(graph.responses), len(graph.ids)
        # New responses by the order in which this user met them, as if nobody else had brought any.
        met = np.stack([own.chosen, own.rejected], axis=1).ravel()
        new = np.array(list(dict.fromkeys(met[met >= base].tolist())), np.int64)
        place = np.arange(len(self.known.responses))
        place[new] = base + np.arange(len(new))
        rows = np.concatenate([np.arange(base), new])
        row = graph.ids.index(user) if user in graph.ids else count
        own = own._replace(user=np.full(len(own.user), row), chosen=place[own.chosen], rejected=place[own.rejected])
        # Neighbours chose the same, so all other votes can be left out.
        same = np.zeros(len(rows), bool)
        same[own.chosen[~own.tie]] = True
        near = graph.graph[graph.pairs.user] & same[graph.pairs.chosen] & (graph.pairs.user != row)
        table = self.known.table
        return embed_new_users(
            users=np.concatenate([graph.users, np.zeros((1, graph.users.shape[1]), np.float32)]),
            responses=self.known.responses[rows],
            table=None if table is None else only_rows(table, rows),
            seen=np.append(graph.graph, False),
            train_pairs=concatenate([graph.pairs.take(near), own.take(np.full(len(own.user), row < count))]),
            context=own,
            unseen=np.array([row]),
            scale=self.scale,
        )

    def snapshot_user(self, user: str) -> OneUser | None:
        """The user's embedding and comparisons."""
        row = self._row.get(user)
        if row is None:
            return None
        return OneUser(self.known.users[row].copy(), self.known.pairs.take(self.known.pairs.user == row))

    def restore_user(self, user: str, snapshot: OneUser | None) -> None:
        """Sets both back; responses that only later votes brought stay until someone is removed."""
        known, row = self.known, self._row.get(user)
        if snapshot is None:
            if row is not None:
                self._set(_without(known, row))
            return
        if row is None:
            row = len(known.ids)
            more = np.zeros((1, known.users.shape[1]), np.float32)
            graph = np.append(known.graph, False)
            known = known._replace(ids=[*known.ids, user], users=np.concatenate([known.users, more]), graph=graph)
        users = known.users.copy()
        users[row] = snapshot.embedding
        own = snapshot.pairs._replace(user=np.full(len(snapshot.pairs.user), row))
        self._set(known._replace(users=users, pairs=concatenate([known.pairs.take(known.pairs.user != row), own])))

    def describe_user(self, user: str) -> dict[str, Any]:
        """The user's embedding, nobody's, and whether training knew the user."""
        self._check_users([user])
        row = self._row[user]
        return {
            "embedding": self.known.users[row].tolist(),
            "shared_embedding": self._nobody.tolist(),
            "in_graph": bool(self.known.graph[row]),
        }

    def _set(self, known: Known) -> None:
        self.known = known
        self._row = {name: row for row, name in enumerate(known.ids)}
        self._response = {digest.tobytes(): row for row, digest in enumerate(known.digests)}

    def remove_user(self, user: str) -> None:
        """Removes id, embedding and comparisons.

        What the graph and the experts learned from the votes of a user in training stays in their parameters.
        """
        self._check_users([user])
        row, known = self._row[user], self.known
        stay = np.arange(len(known.ids)) != row
        if not known.graph[stay].any():
            raise UserError(f"remove_user: {user!r} is the last user of the graph; delete the model instead")
        known, kept = without_lone_texts(_without(known, row))
        self._set(known)
        graph = self._graph
        if user in graph.ids:
            graph, again = _without(graph, graph.ids.index(user)), bool(graph.graph[graph.ids.index(user)])
            self._nobody = mean_user(graph) if again else self._nobody
        self._graph = _take_responses(graph, kept[: len(graph.responses)])

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """Experts, gates and head; embeddings, digests and comparisons."""
        known = self.known
        own = {name: value for name, value in dataclasses.asdict(self.config).items() if name != "lm"}
        model = {"model": own, "embedding_dim": int(known.users.shape[1]), "facts": self.facts}
        tensors = {f"params/{path}": leaf for path, leaf in parameter_files.as_tensors(self.params).items()}
        tensors |= {"users": known.users, "responses": known.responses, "digests": known.digests}
        tensors["nobody"] = self._nobody
        tensors |= {name: np.asarray(getattr(known.pairs, name), kind) for name, kind in VOTES.items()}
        if known.table is not None:
            model["table"] = {"prior": known.table.prior, "edges": known.table.edges}
            tensors |= columns(known.table)
        votes = np.bincount(known.pairs.user, minlength=len(known.ids))
        return model, {**tensors, "graph": known.graph.astype(np.uint8)}, votes.tolist()

    @classmethod
    def restore(cls, saved: Saved) -> "CoPL":
        """From a saved folder."""
        text, tensors = saved.text, saved.tensors
        if text is None:
            raise UserError(f"{saved.folder}: names no base; fit and save the model again")
        config, dim = checkpoint.parse(saved.model, text.config, where=str(saved.folder / personal.ABOUT))
        params = {name.removeprefix("params/"): leaf for name, leaf in tensors.items() if name.startswith("params/")}
        tree = checkpoint.as_params(params, config, dim, where=str(saved.folder / personal.TENSORS))
        about: dict[str, Any] | None = saved.model.get("table")
        wanted = ("users", "nobody", "responses", "digests", "graph", *VOTES, *(() if about is None else COLUMNS))
        if missing := [name for name in wanted if name not in tensors]:
            raise UserError(
                f"{saved.folder / personal.TENSORS}: lacks {', '.join(missing)}; it is damaged or of another version "
                "of CoPL; fit and save the model again"
            )
        votes: dict[str, Any] = {name: tensors[name] for name in VOTES}
        rows = {name: votes[name].astype(np.int64) for name in ("user", "chosen", "rejected")}
        table = None if about is None else from_columns(tensors["responses"], tensors, about)
        known = Known(
            saved.users,
            *(tensors[name] for name in ("users", "responses", "digests")),
            pairs=every_kind(Comparisons(**votes | rows)),
            graph=tensors["graph"].astype(bool),
            table=table,
        )
        params = jax.device_put(tree, replicated(text.mesh))
        more = {"facts": saved.model["facts"], "nobody": tensors["nobody"]}
        return cls(text=text, config=config, params=params, known=known, **more)

    def export(self, folder: str | Path, *, user: str | None = None) -> None:
        """Writes one user's model as a LoRA adapter that PEFT opens on the base.

        Args:
          folder: replaced if it is there; an earlier export there is replaced.
          user: whose; every user has experts of their own, so one has to be named.

        Raises:
          UserError: without a user, or for one who is not known.
        """
        if user is None:
            raise UserError("export: CoPL's users have experts of their own; name one with user= (or --user)")
        self._check_users([user])
        row = jnp.asarray(self.known.users[self._row[user]])
        if self.config.lm.pooling == "last":
            check_padding(self.config.lm, self.base.tokenizer, folder)
        peft.save_peft(folder, self.config, self.params, row, base_name=self.base.name)


def mean_user(known: Known) -> Float32[np.ndarray, " C"]:
    """The mean of the graph's users."""
    return known.users[known.graph].mean(axis=0)


def _without(known: Known, row: int) -> Known:
    """What is known but for one user."""
    stay = np.arange(len(known.ids)) != row
    pairs = known.pairs.take(known.pairs.user != row)
    return known._replace(
        ids=[name for name, here in zip(known.ids, stay, strict=True) if here],
        users=known.users[stay],
        pairs=pairs._replace(user=pairs.user - (pairs.user > row)),
        graph=known.graph[stay],
    )


def only_rows(table: ResponseTable, rows: Any) -> ResponseTable:
    """The table of some responses, by number or by mask."""
    own: Any = {name: getattr(table, name)[rows] for name in ("embeddings", *COLUMNS)}
    return table._replace(**own)


def _take_responses(known: Known, stay: Bool[np.ndarray, " N"]) -> Known:
    """What is known with these responses alone, which are all that its votes name."""
    if stay.all():
        return known
    place = np.cumsum(stay) - 1
    pairs = known.pairs._replace(chosen=place[known.pairs.chosen], rejected=place[known.pairs.rejected])
    table = None if known.table is None else only_rows(known.table, stay)
    return known._replace(table=table, responses=known.responses[stay], digests=known.digests[stay], pairs=pairs)


def without_lone_texts(known: Known) -> tuple[Known, Bool[np.ndarray, " N"]]:
    """What is known without responses that nobody voted on in the graph and nobody's votes name any longer.

    Returns:
      It, and which responses have stayed.
    """
    table = known.table
    if table is None or table.text is None:
        return known, np.ones(len(known.digests), bool)
    named = np.zeros(len(known.digests), bool)
    named[np.concatenate([known.pairs.chosen, known.pairs.rejected])] = True
    stay = named | table.degrees.any(axis=1)
    return _take_responses(known, stay), stay


def every_kind(votes: Comparisons) -> Comparisons:
    """The votes with tie, strength and choice alone beside their rows, which say of plain preferences what they are."""
    count = len(votes.user)
    tie = np.zeros(count, bool) if votes.tie is None else np.asarray(votes.tie, bool)
    strength = np.full(count, np.nan, np.float32) if votes.strength is None else votes.strength
    choice = np.full(count, -1, np.int32) if votes.choice is None else votes.choice
    return Comparisons(*votes[:3], tie=tie, strength=strength, choice=choice)


def digests(responses: pa.Table) -> UInt8[np.ndarray, "N 16"]:
    """A digest of each response's prompt and text."""
    rows = [[*as_chat(row["prompt"]), answer(row)] for row in responses.to_pylist()]
    named = [[chat[:-1], chat[-1]["content"], *filter(None, [chat[-1]["extra"]])] for chat in rows]
    found = [hashlib.sha256(json.dumps(one).encode()).digest()[:DIGEST] for one in named]
    return np.frombuffer(b"".join(found), np.uint8).reshape(len(rows), DIGEST)
