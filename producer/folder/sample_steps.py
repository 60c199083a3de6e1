"""Which steps of an image are measured on, and which get a sample file."""

from shared.choices import DEFAULT_STEPS_PER_IMAGE, SampleFiles


def default_step_stride(num_steps: int) -> int:
    """Return a stride that leaves about ten steps of each image, from early to late."""
    return max(1, num_steps // DEFAULT_STEPS_PER_IMAGE)


def written_steps(choice: SampleFiles, num_steps: int) -> range:
    """Return the steps that get a sample file when an image is collected."""
    stops = {"all": (num_steps, 1), "needed": (num_steps, default_step_stride(num_steps)), "none": (0, 1)}
    stop, stride = stops[choice]
    return range(0, stop, stride)
