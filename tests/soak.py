"""How much the random tests try: a part of it in CI, all of it with FUSENOTIFY_SOAK=1 (`make soak`)."""

import os
import secrets
from typing import Final

SOAK: Final[bool] = os.environ.get("FUSENOTIFY_SOAK", "") not in ("", "0")
# In CI always the same, else every time another, which the head of pytest's output tells.
SEED: Final[int] = int(os.environ.get("FUSENOTIFY_SEED") or (secrets.randbelow(1 << 32) if SOAK else 0))


def examples(n_ci: int, n_soak: int) -> int:
    """Return how many examples, sequences or seeds a random test tries in this run."""
    return n_soak if SOAK else n_ci
