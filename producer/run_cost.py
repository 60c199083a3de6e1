"""What `producer run` asks for: counted before anything is drawn, and again once layers have names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from producer.cost import passes_text, refuse, run_seconds, span_text, whole_run_passes
from producer.enqueue import matching_layers
from producer.folder.calib_folder import CalibFolder
from producer.folder.sample_steps import default_step_stride
from producer.lines import out
from producer.plan.prompt_sets import MIN_PROOF
from producer.plan.rivals import RANDOM_PLANS
from shared.choices import DEFAULT_MAX_IMAGES, GROUP_SIZES
from shared.costs import TaskSize, cost_of
from shared.models import model_spec
from shared.plan_file import same_text
from shared.runs import RunSettings
from shared.stores.records import Record

ALL_LAYERS = "*"
UNCOUNTED = "the chosen --layers are counted once the first image is there, which brings their names"


class Range(NamedTuple):
    """From least to most."""

    least: float
    most: float

    def __add__(self, other: "Range") -> "Range":  # type: ignore[override]
        return Range(self.least + other.least, self.most + other.most)


def exactly(passes: float) -> Range:
    """Return a number as a range."""
    return Range(passes, passes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """Counts the forward passes of a run on one machine."""

    run: RunSettings
    images: int
    """To be drawn."""
    sensitivity: Mapping[str, Any]
    """Options of `producer enqueue-sensitivity`."""

    @property
    def is_exact(self) -> bool:
        """Whether layers are measured one by one."""
        return bool(self.sensitivity["method"] == "exact")

    def layers(self, folder: CalibFolder) -> int | None:
        """Return how many layers are to be measured one by one; None while the names of those are not known.

        Raises:
            InputError: there is no such layer.
        """
        if not self.is_exact or self.sensitivity["layers"] == ALL_LAYERS:
            return len(model_spec(self.run.model).transformer.linear_layers)
        card = folder.read_model()
        if card is None:
            return None
        group_size = int(self.sensitivity["group_size"])
        return len(matching_layers(card, self.sensitivity["layers"], group_size))

    def until_report(self, layers: int | None, *, images: int | None = None) -> float:
        """Return the forward passes until the report.

        Args:
            layers: how many are measured one by one; without a number none is counted.
            images: how many are to be drawn yet; None for all.
        """
        options = self.sensitivity
        stride = options["step_stride"] or default_step_stride(self.run.num_steps)
        measured_on = min(options["max_images"] or DEFAULT_MAX_IMAGES, self.images)
        return whole_run_passes(
            self.run,
            images=self.images if images is None else images,
            samples=measured_on * -(-self.run.num_steps // stride),
            bits=len(options["bits"]),
            layers=layers or 0,
            probes=None if self.is_exact else options["probes"],
            verify=0 if self.is_exact else options["verify"],
        )

    def levels(self, images: int) -> float:
        """Return the passes for levels of so many images, or what takes as long."""
        return images * self._each("levels")

    def proof(self, prompts: Range, models: Range) -> Range:
        """Return the passes of a proof on so many prompts, each drawn by so many models."""
        each = self._each("verification")
        return Range(prompts.least * models.least * each, prompts.most * models.most * each)

    def _each(self, kind: str) -> float:
        model = model_spec(self.run.model)
        return cost_of(kind, model, TaskSize.of(self.run, model)).forward_passes


def proof_prompts(file: Sequence[str], taken: Sequence[str], most: int) -> Range:
    """Return how many prompts a proof draws: it ends at any of its looks. None, if the file has too few.

    Args:
        file: all prompts of the file.
        taken: those that the levels are of.
        most: how many are allowed.
    """
    left = len({same_text(prompt) for prompt in file} - {same_text(prompt) for prompt in taken})
    least = min(MIN_PROOF, most)
    return Range(least, min(most, left)) if left >= least else Range(0, 0)


def proof_models(rivals: str) -> Range:
    """Return how many models draw each prompt: the original, the plan, and its rivals.

    Uniform ones are those of each group size that fits. All rivals are also those of weight errors, of a
    threshold and random ones, and the rule of thumb, if it fits.
    """
    others = 0 if rivals == "uniform" else 2 + RANDOM_PLANS
    return Range(3 + others, 2 + len(GROUP_SIZES) + others + (rivals == "all"))


class ChosenLayers:
    """Counts the chosen layers as soon as they have names, and refuses what would take weeks."""

    def __init__(self, cost: RunCost, folder: CalibFolder, *, yes: bool) -> None:
        self._cost, self._folder, self._yes = cost, folder, yes
        self._counted = False

    def check(self) -> None:
        """Count them and print what the run costs, if that can be done now and was not done before.

        Raises:
            InputError: it takes too long, and nobody has said yes; or there is no such layer.
        """
        if not self._counted and (line := self._count()):
            out.print(line)

    def before_anything(self) -> str:
        """Return in a line what the run costs; if the layers have no names yet, that of the images.

        Raises:
            InputError: as `check` does.
        """
        line = self._count()
        if line is None:
            passes = self._cost.until_report(None)
            self._refuse(passes, exact=False)
            line = f"cost until the report: {passes_text(passes)} for the images; {UNCOUNTED}"
        return line

    def _count(self) -> str | None:
        layers = self._cost.layers(self._folder)
        if layers is None:
            return None
        self._counted = True
        passes = self._cost.until_report(layers)
        self._refuse(passes, exact=self._cost.is_exact)
        return f"cost until the report: {passes_text(passes)}"

    def _refuse(self, passes: float, *, exact: bool) -> None:
        if not self._yes:
            refuse(passes, None, exact=exact)


def cost_lines(
    cost: RunCost,
    layers: int | None,
    records: Mapping[str, Record],
    *,
    levels: int,
    prompts: Range,
    models: Range,
    workers: int,
) -> Iterator[str]:
    """Yield what a whole run costs, a line each.

    Args:
        cost: counts it.
        layers: how many are measured; None if that is not known.
        records: of the images that are drawn already.
        levels: of how many images levels are taken; 0: the run ends with the report.
        prompts: of the proof.
        models: that draw each of them.
        workers: processes on this machine.
    """
    missing = max(0, cost.images - len(records))
    drawing = missing * float(cost.run.num_steps)
    measuring = cost.until_report(layers, images=0)
    yield f"images: {missing:,}, {passes_text(drawing)}"
    if layers is None:
        yield f"measurement: {UNCOUNTED}"
    else:
        what = f"{layers:,} layers one by one" if cost.is_exact else "all layers by a sketch"
        yield f"measurement: {what}, {passes_text(measuring)}"
    total = exactly(drawing + measuring)
    if levels:
        total += exactly(cost.levels(levels))
        yield f"levels: {levels:,} images, {passes_text(cost.levels(levels))}"
        proof = cost.proof(prompts, models)
        total += proof
        if prompts.most:
            yield f"proof: {_range(prompts)} prompts by {_range(models)} models, {_passes(proof)}"
        else:
            yield "proof: none, there are too few prompts beyond those of the levels"
    yield f"cost: {_passes(total)}{' and the measurement' if layers is None else ''}"
    seconds = [run_seconds(passes, records, workers) for passes in total]
    if None in seconds:
        each = " to ".join(dict.fromkeys(map(span_text, total)))
        yield f"time: not known yet; {each} of work for each second that a forward pass takes"
    else:
        each = " to ".join(dict.fromkeys(span_text(one) for one in seconds if one is not None))
        yield f"time: about {each} by the images so far, with {workers} workers"


def _range(numbers: Range) -> str:
    return " to ".join(dict.fromkeys(f"{number:,.0f}" for number in numbers))


def _passes(passes: Range) -> str:
    return f"about {_range(passes)} forward passes"
