"""What config files share."""

from pref_jax.errors import UserError


def check_variant(variant: str, *known: str) -> None:
    """Refuses a variant that the config does not have.

    Raises:
      UserError: naming those it has.
    """
    if variant and variant not in known:
        raise UserError(f"config variant {variant!r} is unknown; known: (none), {', '.join(known)}")
