"""What each layer can be, and the bytes that it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from producer.plan.keep import KeepRule, check_matches
from shared.errors import InputError, RunMismatchError
from shared.kinds.weights import WeightsShard
from shared.metrics import Booleans, Floats, Integers
from shared.model_card import LayerInfo, ModelCard
from shared.plan import Choice, Variant

BYTES = 2
"""Of a parameter that is not quantized: float16 or bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """K options for each of R rows; a row is one layer, or several that are tied and so share an option."""

    layers: tuple[LayerInfo, ...]
    options: tuple[Choice | None, ...]
    """None, the last, leaves a layer as it is."""
    row_of: Integers
    """(L,): the row of each layer."""
    allowed: Booleans
    """(R, K)."""
    stored_bytes: Integers
    """(R, K): bytes of the row's weights."""
    other_bytes: int
    """Bytes of all parameters that are in no row."""

    def by_row(self, by_layer: Floats) -> Floats:
        """Return (R, ...) sums over tied layers of (L, ...) values."""
        sums = np.zeros((len(self.allowed), *by_layer.shape[1:]))
        np.add.at(sums, self.row_of, by_layer)
        return sums

    def total_bytes(self, chosen: Integers) -> int:
        """Return the bytes of the whole transformer with option `chosen[r]` in row r."""
        return self.other_bytes + int(self.stored_bytes[np.arange(len(chosen)), chosen].sum())

    def choices(self, chosen: Integers) -> dict[str, Choice]:
        """Return the choice of each layer that is quantized, in the order of the card."""
        picked = ((layer.path, self.options[chosen[row]]) for layer, row in self._rows())
        return {path: choice for path, choice in picked if choice is not None}

    def variant(self, name: str, chosen: Integers) -> Variant:
        """Return a model with option `chosen[r]` in row r."""
        return Variant(name=name, layers=self.choices(chosen))

    def variant_bytes(self, layers: dict[str, Choice]) -> int:
        """Return the bytes of the whole transformer with these choices, allowed or not, tied or not."""
        sizes = (layer_bytes(layer.shape, layers.get(layer.path)) for layer, _ in self._rows())
        return self.other_bytes + sum(sizes)

    def _rows(self) -> list[tuple[LayerInfo, int]]:
        return list(zip(self.layers, self.row_of.tolist(), strict=True))


def layer_bytes(shape: tuple[int, int], choice: Choice | None) -> int:
    """Return the bytes of a weight (outputs, inputs): packed, with scales and biases, or in 16 bits."""
    return BYTES * shape[0] * shape[1] if choice is None else choice.stored_bytes(shape)


def make_offers(
    card: ModelCard,
    weights: WeightsShard,
    rules: Sequence[KeepRule] = (),
    candidates: Sequence[Choice] | None = None,
) -> Offers:
    """Return what each layer can be.

    Args:
        card: the model's layers.
        weights: what the candidates cost.
        rules: what the user wants for some layers.
        candidates: those to offer; all in `weights` if None.

    Raises:
        InputError: a rule matches no layer, or the rules leave a layer nothing.
        RunMismatchError: the weight errors are of another model.
    """
    check_matches(rules, [layer.path for layer in card.layers])
    known = candidates_of(weights)
    if len(weights.squared_norm) != len(card.layers):
        raise RunMismatchError(
            f"weight errors of {len(weights.squared_norm)} layers, but {card.model} has {len(card.layers)}"
        )
    columns = [known.index(choice) for choice in (known if candidates is None else candidates)]
    options = (*(known[column] for column in columns), None)
    sizes = np.array([layer.shape[0] * layer.shape[1] for layer in card.layers], np.int64)
    allowed = np.column_stack([weights.measurable[:, columns], np.ones(len(sizes), bool)])
    for rule in rules:
        allows = np.array([rule.allows(option) for option in options])
        matches = np.array([rule.matches(layer.path) for layer in card.layers])
        allowed[matches] &= allows
    row_of, first = _rows_of(card.layers)
    together = np.ones((len(first), len(options)), bool)
    np.logical_and.at(together, row_of, allowed)
    for row, layer in enumerate(first):
        if not together[row].any():
            raise InputError(
                f"{card.layers[layer].path} can be nothing of what is wanted: the --keep options contradict "
                "each other there, or its inputs are no multiple of the group size; change one of them"
            )
    stored = np.column_stack([weights.stored_bytes[:, columns].astype(np.int64), BYTES * sizes])
    by_row = np.zeros((len(first), len(options)), np.int64)
    np.add.at(by_row, row_of, stored)
    return Offers(
        layers=card.layers,
        options=options,
        row_of=row_of,
        allowed=together,
        stored_bytes=by_row,
        other_bytes=BYTES * max(0, card.parameters - int(sizes.sum())),
    )


def candidates_of(weights: WeightsShard) -> list[Choice]:
    """Return the candidates of a table of weight errors, in its order."""
    return [
        Choice(bits=int(bits), group_size=int(size))  # type: ignore[arg-type]
        for bits, size in zip(weights.bits, weights.group_size, strict=True)
    ]


def _rows_of(layers: Sequence[LayerInfo]) -> tuple[Integers, list[int]]:
    """Return each layer's row, and each row's first layer."""
    rows: dict[str, int] = {}
    row_of, first = [], []
    for index, layer in enumerate(layers):
        tie = layer.place.tie if layer.place else None
        # A path has no spaces, so no tie is taken for one.
        name = f"tie {tie}" if tie else layer.path
        if name not in rows:
            rows[name] = len(rows)
            first.append(index)
        row_of.append(rows[name])
    return np.array(row_of, np.int64), first
