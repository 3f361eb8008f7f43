"""One module a pipeline stage, run as `python -m tasks.STAGE`."""

import os

# Threads that wait for one another spin this often before they sleep. OpenMP reads it when torch is first
# imported, so it stands here. Its own default spins for milliseconds: on cores that others use too, a
# step then took up to eight times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
