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

from copl_jax.graph.embedding import embed_new_users
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
from pref_jax.personal import Added, PersonalReward, Saved, Scores

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

    def __init__(self, *, text: TextModel, config: RewardConfig, params: Any, known: Known, facts: dict[str, Any]):
        self.text = self.base = text
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
        """Rewards by each user's experts; None: those of the mean of the graph's users."""
        if uncertainty:
            raise UserError("CoPL has no posterior over rewards, so no uncertainty; leave uncertainty out")
        tokens = self.base.tokenize(rows)
        route = np.array([0 if user is None else self._row[user] + 1 for user in users], np.int32)
        read = reader(self.config, self.base.params, self.params, self._table())
        found = self.base.read_rows(tokens, read, route=route)[:, 0]
        return Scores(found, np.zeros_like(found))

    def _table(self) -> np.ndarray:
        """Embeddings with the mean of the graph's users first, up to a bucket: more users compile nothing again."""
        mean = self.known.users[self.known.graph].mean(axis=0, keepdims=True)
        table = np.concatenate([mean, self.known.users])
        return np.pad(table, ((0, bucket(len(table)) - len(table)), (0, 0)))

    def add_votes(self, user: str, votes: Any) -> Added:
        """Embeds the user from all votes on responses that the graph knows.

        Where the graph's nodes have texts (`GCFConfig.nodes`), it knows all responses: new ones are embedded by their
        texts, and kept as numbers and digests. Otherwise votes on them are counted in what it returns and teach
        nothing: the graph has no place for them.
        Where none is known, a new user gets the mean of the graph's users. Ties are read where training had some.
        """
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
            # Neighbours chose the same, so all other votes can be left out.
            same = np.zeros(len(known.responses), bool)
            same[own.chosen[~own.tie]] = True
            found = embed_new_users(
                users=users,
                responses=known.responses,
                table=known.table,
                seen=graph,
                train_pairs=pairs.take(graph[pairs.user] & same[pairs.chosen]),
                context=own,
                unseen=np.array([row]),
                scale=self.scale,
            )
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

    def remove_user(self, user: str) -> None:
        """Removes id, embedding and comparisons.

        What the graph and the experts learned from the votes of a user in training stays in their parameters.
        """
        self._check_users([user])
        row, known = self._row[user], self.known
        stay = np.arange(len(known.ids)) != row
        if not known.graph[stay].any():
            raise UserError(f"remove_user: {user!r} is the last user of the graph; delete the model instead")
        pairs = known.pairs.take(known.pairs.user != row)
        known = known._replace(
            ids=[name for name in known.ids if name != user],
            users=known.users[stay],
            pairs=pairs._replace(user=pairs.user - (pairs.user > row)),
            graph=known.graph[stay],
        )
        self.known = without_lone_texts(known)
        self._row = {name: row for row, name in enumerate(self.known.ids)}
        self._response = {digest.tobytes(): row for row, digest in enumerate(self.known.digests)}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        """Experts, gates and head; embeddings, digests and comparisons."""
        known = self.known
        own = {name: value for name, value in dataclasses.asdict(self.config).items() if name != "lm"}
        model = {"model": own, "embedding_dim": int(known.users.shape[1]), "facts": self.facts}
        tensors = {f"params/{path}": leaf for path, leaf in parameter_files.as_tensors(self.params).items()}
        tensors |= {"users": known.users, "responses": known.responses, "digests": known.digests}
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
        wanted = ("users", "responses", "digests", "graph", *VOTES, *(() if about is None else COLUMNS))
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
        return cls(text=text, config=config, params=params, known=known, facts=saved.model["facts"])

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


def without_lone_texts(known: Known) -> Known:
    """What is known without responses that nobody voted on in the graph and nobody's votes name any longer."""
    table = known.table
    if table is None or table.text is None:
        return known
    named = np.zeros(len(known.digests), bool)
    named[np.concatenate([known.pairs.chosen, known.pairs.rejected])] = True
    stay = named | table.degrees.any(axis=1)
    place = np.cumsum(stay) - 1
    rows: Any = {name: getattr(table, name)[stay] for name in ("embeddings", *COLUMNS)}
    pairs = known.pairs._replace(chosen=place[known.pairs.chosen], rejected=place[known.pairs.rejected])
    table = table._replace(**rows)
    return known._replace(table=table, responses=table.embeddings, digests=known.digests[stay], pairs=pairs)


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
