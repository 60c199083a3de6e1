"""Whether a model's files are here, or this machine may download them: before any job finds out."""

from collections.abc import Iterator
from pathlib import Path

from shared.doctor.check import Check
from shared.doctor.surroundings import check_model_files
from worker.families.downloads import unavailable


def check_access(model: str, cache: Path) -> Iterator[Check]:
    """Check the files; where they are missing, ask Hugging Face whether this machine may have them.

    Args:
        model: its id.
        cache: the folder of Hugging Face's downloads.
    """
    for check in check_model_files(model, cache):
        yield check
        if check.outcome != "ok":
            yield _asked(model)


def _asked(model: str) -> Check:
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(model)
    except Exception as error:  # noqa: BLE001
        # Whatever the hub or the network answers. No failure: the machine may serve runs of other models.
        problem, _, cure = str(unavailable(model, model, "each file", error)).partition("; ")
        return Check(name="Model access", outcome="warning", found=problem, cure=cure)
    return Check(name="Model access", outcome="ok", found=f"this machine may download {model}")
