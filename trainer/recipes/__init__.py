"""Recipes: Python functions that return a whole training as one typed value."""

from __future__ import annotations

from collections.abc import Callable

from trainer.recipes.config import Recipe
from trainer.recipes.live import live, live_last
from trainer.recipes.paper import paper, paper_small

RECIPES: dict[str, Callable[[], Recipe]] = {
    "live": live, "live-last": live_last, "paper": paper, "paper-small": paper_small,
}  # fmt: skip


def recipe_of(name: str) -> Recipe:
    """The recipe of a name, or of a dotted path to a function of one's own.

    Raises:
        ValueError: there is none.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if "." not in name:
        raise ValueError(f"there is no recipe {name!r}; choose {', '.join(RECIPES)} or a path")
    from trainer.losses.priors import by_path

    made = by_path(name)()
    if not isinstance(made, Recipe):
        raise ValueError(f"{name} returns no Recipe but {type(made).__name__}")
    return made
