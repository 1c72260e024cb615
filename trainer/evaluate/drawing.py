"""From the suite's items to videos, each drawn once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.codes import FACTOR_SLICES, FACTORS
from models.portrait import Portrait, PortraitError
from trainer.evaluate import suite
from trainer.evaluate.studio import (
    Driver,
    RenderFailedError,
    Studio,
    at_size,
    calmest,
    swapped,
)
from trainer.evaluate.suite import Item
from trainer.prepare.media import MediaError, write_clip

_LIP = FACTOR_SLICES["lip"]
OnDone = Callable[[], None]


@dataclass(slots=True)
class Drawn:
    """Videos of one item, by what they show. `real` is looked at, never measured."""

    item: Item
    videos: dict[str, Path] = field(default_factory=dict)

    @property
    def measured(self) -> list[Path]:
        """The videos whose signals are needed."""
        return [v for k, v in self.videos.items() if k != "real"]


def draw_all(
    studio: Studio, items: list[Item], skipped: list[dict[str, str]], done: OnDone
) -> Iterator[Drawn]:
    """Draw items in order; one that cannot be drawn is left out and told in `skipped`."""
    portraits: dict[Path, Portrait | str] = {}
    drivers: dict[Path, Driver] = {}
    for item in items:
        try:
            yield _draw_one(studio, item, portraits, drivers)
        except (RenderFailedError, PortraitError, MediaError, ValueError) as error:
            skipped.append({"item": item.name, "why": str(error)})
        done()


def _draw_one(
    studio: Studio,
    item: Item,
    portraits: dict[Path, Portrait | str],
    drivers: dict[Path, Driver],
) -> Drawn:
    out = Drawn(item)
    if item.kind == "voice":
        portrait, path = _usable(studio, item, portraits)
        out.videos["source"] = _source(studio, path, portrait)
        out.videos["ours"] = studio.product(path, item.driver, None)
        return out
    if len(drivers) > 8:
        drivers.clear()
    for clip in (item.driver, item.other, item.real):
        if clip is not None and clip not in drivers:
            drivers[clip] = studio.driver(clip)
    driver = drivers[item.driver]
    out.videos["driver"] = studio.driver_video(item.driver, driver)
    if item.real is not None:
        out.videos["real"] = studio.driver_video(item.real, drivers[item.real])
    if item.kind == "exact" and item.other is not None:
        return _draw_exact(studio, out, driver, drivers[item.other])
    if item.kind == "self":
        return _draw_self(studio, out, driver)
    portrait, path = _usable(studio, item, portraits)
    source = at_size(portrait.image)
    out.videos["source"] = _source(studio, path, portrait)
    if item.kind in ("speech", "driven"):
        moved = item.driver if item.kind == "driven" else None
        out.videos["ours"] = studio.product(path, item.driver, moved)
    elif item.kind == "codes":
        place = studio.place("codes", path, item.driver)
        out.videos["ours"] = studio.drawn(place, portrait.appearance, source, _spoken(driver))
    else:
        assert item.other is not None
        a, b = _spoken(driver), _spoken(drivers[item.other])
        for name, factors in [("a", ()), ("b", FACTORS), *((f"a_{f}", (f,)) for f in FACTORS)]:
            place = studio.place("swap", path, item.driver, item.other, name)
            out.videos[name] = studio.drawn(
                place, portrait.appearance, source, swapped(a, b, factors)
            )
    return out


def _source(studio: Studio, path: Path, portrait: Portrait) -> Path:
    """The portrait's own canonical crop as a video of one picture."""
    place = studio.place("source", path)
    if not place.exists():
        write_clip(place, [at_size(portrait.image)], lossless=True)
    return place


def _spoken(driver: Driver) -> Any:
    """Codes of a driver with the lips of its sound, where it has any."""
    out = driver.codes.copy()
    if driver.spoken is not None:
        out[:, _LIP] = driver.spoken
    return out


def _draw_self(studio: Studio, out: Drawn, driver: Driver) -> Drawn:
    """Redraw a clip from its own calmest frame, lips as read from the picture."""
    crop = driver.face.crops[calmest(driver.face)]
    out.videos["source"] = studio.place("self source", out.item.driver)
    if not out.videos["source"].exists():
        write_clip(out.videos["source"], [crop], lossless=True)
    out.videos["ours"] = place = studio.place("self", out.item.driver)
    if not place.exists():
        studio.drawn(place, studio.engine.appearance(crop), crop, driver.codes)
    return out


def _draw_exact(studio: Studio, out: Drawn, driver: Driver, other: Driver) -> Drawn:
    """The person redrawn from the calmest frame: all codes of the clip, then one swapped."""
    item = out.item
    assert item.other is not None
    out.videos["other"] = studio.driver_video(item.other, other)
    crop = driver.face.crops[calmest(driver.face)]
    appearance = None
    for name, factors in (("ours_a", ()), ("ours_b", (item.factor,))):
        out.videos[name] = place = studio.place("exact", item.driver, item.other, name)
        if not place.exists():
            appearance = appearance or studio.engine.appearance(crop)
            codes = swapped(driver.codes, other.codes, factors)
            studio.drawn(place, appearance, crop, codes)
    return out


def _usable(
    studio: Studio, item: Item, portraits: dict[Path, Portrait | str]
) -> tuple[Portrait, Path]:
    """The item's portrait, or the first bundled one where enrolment refuses it."""
    assert item.portrait is not None
    for path in (item.portrait, *suite.bundled_portraits()):
        if path not in portraits:
            try:
                portraits[path] = studio.portrait(path)
            except PortraitError as error:
                portraits[path] = str(error)
        found = portraits[path]
        if isinstance(found, Portrait):
            return found, path
    raise RenderFailedError("no portrait could be enrolled")
