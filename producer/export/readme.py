"""The README of an exported folder: what Hugging Face calls a model card."""

from collections import Counter
from pathlib import Path

from humanfriendly import format_size
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from producer.inspection.inspect_checkpoint import Inspection
from producer.proof.verdict import Comparison, Verdict
from shared.models import model_spec
from shared.plan_file import Plan

TEMPLATES = Path(__file__).parent / "templates"


def export_readme(plan: Plan, inspection: Inspection, proof: Verdict | None = None) -> str:
    """Return the README, in Markdown with the head that Hugging Face reads.

    Args:
        plan: what the model was made from.
        inspection: of the written files: sizes are those of what is there.
        proof: what a verification said, if there was one.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"size": format_size, "db": "{:.1f}".format, "interval": _interval, "cell": _cell}
    stored = Counter(layer.stored_as for layer in inspection.layers)
    sizes: Counter[str] = Counter()
    for layer in inspection.layers:
        sizes[layer.stored_as] += layer.nbytes
    original_bytes = model_spec(plan.run.model).weight_bytes
    return environment.get_template("readme.md.j2").render(
        plan=plan,
        run=plan.run,
        inspection=inspection,
        proof=proof,
        spec=model_spec(plan.run.model),
        bits_per_parameter=8 * inspection.nbytes / plan.parameters,
        share=inspection.nbytes / original_bytes,
        stored=stored.most_common(),
        bytes_of=sizes,
        base_model=None if model_spec(plan.run.model).built_in else plan.run.model,
    )


def _interval(comparison: Comparison) -> str:
    if comparison.low_db is None or comparison.high_db is None:
        return "–"
    return f"{comparison.low_db:.1f} to {comparison.high_db:.1f}"


def _cell(text: str) -> str:
    """A prompt is anybody's text: in a table it stays one line, and is no markup."""
    return "".join(f"&#{ord(c)};" if c in "|<>&[]`*_\\" else c for c in " ".join(text.split()))
