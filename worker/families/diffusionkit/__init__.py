"""What the families that DiffusionKit runs share: its loaders, its pipelines, its `MMDiT`."""

from worker.families.diffusionkit.quiet_imports import quiet_imports

with quiet_imports():
    # Before any module of this room does it in its own way.
    import diffusionkit.mlx  # noqa: F401
