"""Whether this machine's memory holds what a model's runs need."""

from collections.abc import Iterator

from humanfriendly import format_size

from shared.costs import TaskSize, peak_bytes
from shared.doctor.check import Check, ok
from shared.models import model_spec
from worker.engine.limits import default_memory_limit

KINDS = {
    "calibration": "drawing",
    "sensitivity": "exact measurements",
    "sketch": "a sketch of one probe",
    "levels": "levels",
    "verification": "a verification",
}


def check_memory(model: str, *, offered: int | None = None) -> Iterator[Check]:
    """Check whether each kind of task fits, at the model's own image size.

    Args:
        model: its id.
        offered: bytes; None for what a worker takes by default.
    """
    spec = model_spec(model)
    size = TaskSize(
        image_size=spec.image_size,
        num_steps=spec.num_steps,
        rows=2 if spec.cfg_weight > 0 else 1,
        text_tokens=spec.text_tokens(use_t5=spec.text_encoder_t5 == "required"),
        text_encoder_bytes=spec.text_encoder_bytes(use_t5=spec.text_encoder_t5 == "required"),
    )
    limit = default_memory_limit() if offered is None else offered
    needs = {kind: peak_bytes(kind, spec, size) for kind in KINDS}
    short = [f"{KINDS[kind]} ({format_size(need)})" for kind, need in needs.items() if need > limit]
    if not short:
        most = format_size(max(needs.values()))
        yield ok(
            "Memory", f"{format_size(limit)} for tasks; {model} needs {most} at most", bytes=float(limit)
        )
        return
    yield Check(
        name="Memory",
        outcome="warning",
        found=f"{format_size(limit)} for tasks, too little for {', '.join(short)} of {model}",
        cure="leave those to a larger Mac, as a worker does by itself, or take a smaller --image-size",
        figures={"bytes": float(limit)},
    )
