"""The tests; MLX multiplies with the BLAS that it has in a worker."""

import os
import sys

from worker.service.blas import use_fast_blas

if "pytest" in sys.modules:
    # Here, since what is imported after this may import MLX or torch. With one thread: models are small, and
    # more threads on cores that are busy with other tests would mostly wait for each other. Programs that
    # tests start choose for themselves: most multiply nothing, and loading a BLAS takes a third of a second.
    use_fast_blas(processes=os.cpu_count() or 1)
