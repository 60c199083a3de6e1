"""What the levels say of models of every size, before any of them is drawn: estimates to first order."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from producer.folder.calib_folder import CalibFolder
from producer.plan.frontier import Frontier, Solution
from producer.plan.planner import Material, ScoreOptions, image_material, scored_offers
from producer.plan.rivals import uniform
from producer.plan.targets import parameters_of
from shared.errors import BitfleetError
from shared.plan import Choice
from shared.plan_file import Plan

POINTS = 60
"""Of the frontier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model's size, and the relative error of the final latent that is expected of it."""

    name: str
    bits_per_weight: float
    stored_bytes: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Points by the levels, and what is needed for others."""

    material: Material
    images: int
    """Whose levels were measured."""
    frontier: tuple[Point, ...]
    """The best that is on offer, by size."""
    uniform: tuple[Point, ...]
    """Every uniform model."""

    def error(self, layers: Mapping[str, Choice]) -> float | None:
        """Return the expected relative error of a model; None if a choice has no score."""
        return _error(self.material, layers)


def read_estimates(folder: CalibFolder, plan: Plan | None) -> Estimates | None:
    """Return what the folder's levels say; None if there are none, or several and no plan names one.

    Args:
        folder: the calibration folder.
        plan: its levels are taken, and what must be kept.
    """
    by_image = plan is not None and plan.scores.target == "image"
    options = ScoreOptions(source=plan.scores.source if plan and by_image else None)
    with suppress(BitfleetError, OSError):
        material = image_material(folder, options)
        offers, scores = scored_offers(material, plan.keep if plan else ())
        parameters = parameters_of(offers)

        def point(name: str, stored: int, error: float) -> Point:
            return Point(name=name, bits_per_weight=8 * stored / parameters, stored_bytes=stored, error=error)

        frontier = Frontier(scores, offers.stored_bytes.astype(np.float64), offers.allowed)
        budgets = np.linspace(frontier.smallest, frontier.largest, POINTS)
        best: list[Solution] = []
        for budget in budgets:
            found = frontier.at(float(budget)).solution
            # A little more room may be filled a little worse.
            if not best or found.value < best[-1].value:
                best.append(found)
        models = [uniform(offers, choice) for choice in material.scores.candidates]
        errors = [(model, _error(material, model.layers)) for model in models]
        return Estimates(
            material=material,
            images=material.about.images,
            frontier=tuple(
                point("best plan", offers.total_bytes(one.chosen), float(np.sqrt(one.value))) for one in best
            ),
            uniform=tuple(
                point(model.name, offers.variant_bytes(model.layers), error)
                for model, error in errors
                if error is not None
            ),
        )
    return None


def _error(material: Material, layers: Mapping[str, Choice]) -> float | None:
    """Return the root of the sum of the layers' scores; None if one has none."""
    columns = {choice: column for column, choice in enumerate(material.scores.candidates)}
    total = 0.0
    for row, layer in enumerate(material.card.layers):
        choice = layers.get(layer.path)
        if choice is None:
            continue
        column = columns.get(choice)
        if column is None or not material.scores.known[row, column]:
            return None
        total += float(material.scores.error[row, column])
    return float(np.sqrt(total))
