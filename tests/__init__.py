"""The tests; MLX multiplies with the BLAS that it has in a worker."""

import os

from worker.service.blas import use_fast_blas

# Here, since what is imported after this may import MLX or torch. With one thread: models are small, and more
# threads on cores that are busy with other tests would mostly wait for each other.
use_fast_blas(processes=os.cpu_count() or 1)
