"""What producer and worker agree on: runs, tasks, records, shards, stores, the calibration layout.

Nothing here imports mlx, diffusionkit or torch, and nothing here knows producer or worker.
"""

__version__ = "0.2.0"
