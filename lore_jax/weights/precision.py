"""Products of full float32 precision on every device.

TPUs, and GPUs if they are asked to, round the factors of float32 products to fewer digits by default: good enough for a
network that learns to live with it, not for solvers, which would be exact to three digits. What `exactly` decorates is
traced with full products; on a CPU they are full anyway.
"""

import jax

full_matmul_precision = jax.default_matmul_precision("highest")
