"""Makes the demo model: a grammar of pictures, their renderer, and the training of each part."""

from worker.service.blas import use_fast_blas

# Here, since the training's modules import MLX at their top.
use_fast_blas()
