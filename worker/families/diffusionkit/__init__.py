"""What the families that DiffusionKit runs share: its loaders, its pipelines, its `MMDiT`."""
