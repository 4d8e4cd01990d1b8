"""Options that several readers take, told once: settings whose fields are keyword options of a reader."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from pref_jax.data.sources.common import split_rule
from pref_jax.data.splits import check_options
from pref_jax.errors import Faults


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How votes are split by voter and by query (`vote_tables.RULE`).

    Attributes:
      unseen_fraction: of the voters.
      test_query_fraction: of the queries, those of one topic together.
      validation_fraction: of the seen users' votes on the other queries.
      min_votes: users with fewer usable votes are left out.
      context_pairs: at most so many training pairs of an unseen user; the rest is left out.
    """

    unseen_fraction: float | int = 0.25
    test_query_fraction: float | int = 0.25
    validation_fraction: float | int = 0.1
    min_votes: int = 4
    context_pairs: int = 8

    def check(self, faults: Faults | None = None) -> None:
        """Raises one `UserError` naming the options out of range, and `faults` found elsewhere."""
        values = dataclasses.asdict(self)
        counts = {name: values.pop(name) for name in ("min_votes", "context_pairs")}
        check_options(fractions=values, counts=counts, faults=faults)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowSplitOptions:
    """Options of readers that split by `split_rule.RULE`; their meaning is told by `split_rule.SplitOptions`."""

    validation_fraction: float | int = 0.1
    test_fraction: float | int = 0.2
    unseen_fraction: float | int = 0.2
    split_by: str = "prompt"
    min_votes_per_user: int = 1

    def rule(self) -> split_rule.SplitOptions:
        """The same as the rule takes them.

        Raises:
          UserError: naming the options out of range.
        """
        fractions = {name: getattr(self, f"{name}_fraction") for name in ("validation", "test", "unseen")}
        found = split_rule.SplitOptions(by=self.split_by, min_votes_per_user=self.min_votes_per_user, **fractions)
        found.check()
        return found


def flat_options(**groups: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a reader: fields of its settings become keyword options, told by its signature as well.

    A field that two settings have is the first one's.

    Args:
      **groups: parameter of the reader -> dataclass instance with the defaults.

    Example:
      >>> @flat_options(split=SplitOptions(min_votes=2))
      ... def read(path, *, split): return split.min_votes
      >>> read("here"), read("here", min_votes=3)
      (2, 3)
    """

    def decorate(read: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(read)
        own = {name: option for name, option in signature.parameters.items() if name not in groups}
        for defaults in groups.values():
            for field in dataclasses.fields(defaults):
                default = getattr(defaults, field.name)
                option = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
                own.setdefault(field.name, option)

        @functools.wraps(read)
        def with_options(*args: Any, **options: Any) -> Any:
            for group, defaults in groups.items():
                names = [field.name for field in dataclasses.fields(defaults) if field.name in options]
                options[group] = dataclasses.replace(defaults, **{name: options.pop(name) for name in names})
            return read(*args, **options)

        with_options.__dict__["__signature__"] = signature.replace(parameters=list(own.values()))
        return with_options

    return decorate
