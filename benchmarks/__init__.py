"""How fast and how right; MLX multiplies with the BLAS that it has in a worker."""

from worker.service.blas import use_fast_blas

# Here, since the benchmarks' modules import MLX at their top.
use_fast_blas()
