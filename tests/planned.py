"""A small model for plans: layers of several sizes, three of them tied, and weight errors as of rounding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from producer.folder.calib_folder import CalibFolder
from producer.folder.kept_folder import LevelsRequest, WeightsRequest
from producer.folder.run_file import RunFile
from producer.kinds.kept import KeptPart
from producer.kinds.levels import LevelsPart
from producer.kinds.weights import WeightsPart
from producer.plan.offers import Offers, layer_bytes, make_offers
from shared.identity import digest_of
from shared.kinds.levels import PARTS, LevelsSettings, LevelsShard
from shared.kinds.weights import WeightsShard
from shared.layer_place import LayerPlace
from shared.metrics import Floats
from shared.model_card import LayerInfo, ModelCard
from shared.packed_arrays import PackedArrays
from shared.plan import Choice
from shared.plan_file import Plan, PromptSets, Scores, numbered
from tests.tasks import SETTINGS, record_of

CANDIDATES = tuple(
    Choice(bits=bits, group_size=size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)
)
PLAIN = tuple(Choice(bits=bits, group_size=64) for bits in (2, 3, 4))
SHAPES = {
    "context_embedder": (256, 512),
    "block.0.q": (256, 256),
    "block.0.k": (256, 256),
    "block.0.v": (256, 256),
    "block.0.fc1": (1024, 256),
    "block.0.fc2": (256, 1024),
    "block.0.adaLN": (1536, 256),
    "block.1.q": (256, 256),
    "block.1.narrow": (256, 96),
    "final_layer.adaLN": (512, 256),
    "final_layer.linear": (64, 256),
}
TIED = ("block.0.q", "block.0.k", "block.0.v")
PROMPTS = tuple(f"picture number {number}" for number in range(200))


def card(other_parameters: int = 5000) -> ModelCard:
    layers = tuple(
        LayerInfo(
            path=path,
            shape=shape,
            place=LayerPlace(
                block="final layer" if path.startswith("final") else path.rpartition(".")[0] or "embedders",
                stream=None,
                role=path.rpartition(".")[2],
                short=path,
                tie="qkv" if path in TIED else None,
            ),
        )
        for path, shape in SHAPES.items()
    )
    weights = sum(rows * inputs for rows, inputs in SHAPES.values())
    return ModelCard(
        model="tiny-sd3", fingerprint="f" * 64, parameters=weights + other_parameters, layers=layers
    )


def weights_of(card: ModelCard, candidates: tuple[Choice, ...] = CANDIDATES) -> WeightsShard:
    """Each bit more quarters the squared error, as of uniform rounding; smaller groups round finer."""
    rng = np.random.default_rng(7)
    sizes = np.array([layer.shape[0] * layer.shape[1] for layer in card.layers])
    norm = sizes * rng.uniform(0.5, 2, len(sizes)) * 1e-3
    fits = np.array([[layer.shape[1] % c.group_size == 0 for c in candidates] for layer in card.layers])
    rounding = np.array([4.0 ** (1 - c.bits) * (1 + np.log2(c.group_size / 32) / 4) for c in candidates])
    noise = rng.uniform(0.9, 1.1, fits.shape)
    stored = [[layer_bytes(layer.shape, choice) for choice in candidates] for layer in card.layers]
    return WeightsShard(
        bits=np.array([choice.bits for choice in candidates]),
        group_size=np.array([choice.group_size for choice in candidates]),
        measurable=fits,
        squared_error=np.where(fits, norm[:, None] * rounding * noise, 0.0),
        squared_norm=norm,
        stored_bytes=np.where(fits, np.array(stored), 0),
    )


def offers_of(card: ModelCard, **options: Any) -> Offers:
    return make_offers(card, weights_of(card), **options)


def plan_of(card: ModelCard, **changes: Any) -> Plan:
    """Any plan: what the plan itself chose does not matter to its rivals."""
    layers = {layer.path: Choice(bits=4, group_size=32) for layer in card.layers}
    stored = offers_of(card).variant_bytes(layers)
    values: dict[str, Any] = {
        "run": SETTINGS,
        "fingerprint": card.fingerprint,
        "layers": layers,
        "kept": (),
        "stored_bytes": stored,
        "budget_bytes": stored,
        "parameters": card.parameters,
        "target": "--target-bpw 5",
        "candidates": CANDIDATES,
        "weights_id": "0123456789ab",
        "scores": Scores(target="image", source="abcdefabcdef", images=16, level="products"),
        "score": 0.01,
        "gap": 0.0,
        "prompts": PromptSets(
            scores=numbered(PROMPTS, range(16), 0), proof=numbered(PROMPTS, range(40, 136), 0)
        ),
    }
    return Plan(**values | changes)


def levels_of(
    card: ModelCard,
    image: int,
    *,
    plain: tuple[Choice, ...] = PLAIN,
    factor: float = 1.0,
    dead: tuple[str, ...] = (),
) -> LevelsShard:
    """What one probe says of layers whose true level is `true_levels`; `factor` is this image's own scale."""
    rng = np.random.default_rng([11, image])
    weights = weights_of(card)
    layers = len(card.layers)
    alive = np.array([layer.path not in dead for layer in card.layers])
    level = true_levels(card) * factor * alive
    columns = [CANDIDATES.index(choice) for choice in plain]
    norm, fits = weights.squared_error[:, columns], weights.measurable[:, columns]
    # A third of the steps carries a third; errors of the parts add up with their signs.
    signs = rng.normal(size=(layers, len(plain), 3)) * np.sqrt(level[:, None, None] * norm[:, :, None] / 3)
    products = np.concatenate([signs, signs.sum(axis=-1, keepdims=True)], axis=-1)
    noise = rng.uniform(0.9, 1.1, (layers, PARTS))
    return LevelsShard(
        image_index=np.array(image),
        levels=level[:, None] * np.array([1 / 3, 1 / 3, 1 / 3, 1.0]) * noise,
        products=products * fits[:, :, None],
        measurable=fits,
        dead=~alive,
        cotangent_norm=np.ones(5),
        squared_reference=np.array(100.0),
        output_size=np.array(400),
    )


def true_levels(card: ModelCard) -> Floats:
    rng = np.random.default_rng(5)
    levels: Floats = np.exp(rng.normal(0, 1.5, len(card.layers)))
    return levels


def planned_folder(
    root: Path, *, images: int = 16, dead: tuple[str, ...] = (), prompts: int = 20
) -> CalibFolder:
    """A calibration folder with weight errors and levels, as `producer collect` leaves it."""
    model = card()
    folder = CalibFolder(root)
    run = RunFile(settings=SETTINGS, prompts=PROMPTS[:prompts], store_id="relay", store=None)
    folder.write_run(run)
    folder.write_model(model)
    request = WeightsRequest(candidates=CANDIDATES)
    weights_id = digest_of(CANDIDATES)[:12]
    subfolder = folder.weights.open(weights_id)
    subfolder.write_request(request)
    keep(WeightsPart(folder, subfolder), [weights_of(model)])
    settings = LevelsSettings(run_id=SETTINGS.id, candidates=PLAIN)
    levels = folder.levels.open(settings.id)
    levels.write_request(
        LevelsRequest(
            settings=settings, prompts=numbered(PROMPTS, range(images), SETTINGS.seed), weights_id=weights_id
        )
    )
    keep(LevelsPart(folder, levels), [levels_of(model, image, dead=dead) for image in range(images)])
    return folder


def keep(part: KeptPart, shards: Sequence[PackedArrays]) -> None:
    """Save shards as if a worker had made them."""
    for task, shard in zip(part.tasks(), shards, strict=True):
        data = shard.to_bytes()
        part.keep(record_of(task, data), data)


def prompt_csv(path: Path, count: int = len(PROMPTS)) -> Path:
    path.write_text("prompt\n" + "".join(f"{prompt}\n" for prompt in PROMPTS[:count]))
    return path
