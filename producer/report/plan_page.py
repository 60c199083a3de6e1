"""The page of a plan: what each layer gets, and what that is predicted to cost."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from producer.plan.offers import layer_bytes
from producer.plan.prediction import Prediction
from producer.report.render import environment
from shared.layer_place import place_by_number
from shared.model_card import LayerInfo, ModelCard
from shared.plan import Choice
from shared.plan_file import Plan

AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A layer, or all layers of one kind."""

    name: str
    layers: int
    parameters: int
    stored_bytes: int
    choices: tuple[tuple[str, int], ...]
    """Each choice, with the number of layers that have it; the most bits first."""

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each weight."""
        return 8 * self.stored_bytes / self.parameters


def render_plan(plan: Plan, card: ModelCard, predictions: Sequence[Prediction] = ()) -> str:
    """Return the HTML, which needs no other files and no network.

    Args:
        plan: the plan.
        card: the layers of its model.
        predictions: of the plan and of uniform models, if there are any yet.
    """
    kinds: dict[str, list[LayerInfo]] = defaultdict(list)
    for layer in card.layers:
        kinds[(layer.place or place_by_number(layer.path)).role].append(layer)
    own = next((found for found in predictions if found.name in ("plan", f"plan {plan.id}")), None)
    template = environment().get_template("plan.html.j2")
    return template.render(
        plan=plan,
        predictions=predictions,
        own=own,
        kinds=[_row(kind, layers, plan.layers) for kind, layers in kinds.items()],
        layers=[_row(layer.path, [layer], plan.layers) for layer in card.layers],
        groups=[*plan.prompts.__struct_fields__],
    )


def _row(name: str, layers: Sequence[LayerInfo], chosen: dict[str, Choice]) -> Row:
    counts: dict[Choice | None, int] = defaultdict(int)
    for layer in layers:
        counts[chosen.get(layer.path)] += 1
    order = sorted(counts, key=lambda choice: (-choice.bits, choice.group_size) if choice else (-99, 0))
    return Row(
        name=name,
        layers=len(layers),
        parameters=sum(layer.shape[0] * layer.shape[1] for layer in layers),
        stored_bytes=sum(layer_bytes(layer.shape, chosen.get(layer.path)) for layer in layers),
        choices=tuple((choice.label if choice else AS_IT_IS, counts[choice]) for choice in order),
    )
