"""Why a file of a model can't be had from Hugging Face, and what mends it: a line for each cause."""

import errno

from shared.errors import ModelUnavailableError


def unavailable(model_id: str, repo_id: str, filename: str, error: Exception) -> ModelUnavailableError:
    """Return the error to raise when `hf_hub_download` failed with `error`.

    Waiting helps against a hub that is down: a worker takes such a run up again after ten minutes by itself.
    """
    reason, remedy = _explain(f"https://huggingface.co/{repo_id}", error)
    return ModelUnavailableError(f"{model_id}: {filename} of {repo_id} {reason}; {remedy}")


def _explain(page: str, error: Exception) -> tuple[str, str]:
    # Importing the library takes time, and only a failed download needs it.
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return "is gated", (
            f"accept the licence at {page}, then run `hf auth login`; with a fine-grained token, let it read "
            "gated repositories"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "can't be seen without a login", f"look at {page} and run `hf auth login`"
    if status in (401, 403):
        return "is refused to this token", (
            f"run `hf auth whoami`, let the token read {page}, or log in with another one by `hf auth login`"
        )
    if isinstance(error, HfHubHTTPError) and status is not None and (status == 429 or status >= 500):
        return (
            f"can't be had at the moment (the hub answers {status})",
            "wait, it is tried again by itself",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "has no room on this disk", "make room, or set HF_HOME to a folder on a larger disk"
    if isinstance(error, PermissionError):
        return (
            f"can't be written to {error.filename}",
            "make that folder yours, or set HF_HOME to another one",
        )
    name = type(error).__name__
    return f"is not on this machine and can't be downloaded ({name})", (
        "check the network and HF_HUB_OFFLINE; it is tried again by itself"
    )
