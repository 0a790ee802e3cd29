"""A worker that wants a plan, as a process of its own: it can be killed, stopped, and run as another user.

``python -m tests.doubles.plan_worker FOLDER RECIPE BUILD_S LEASE_S [USER_ID]`` prints what the cache says, ``building``
when it builds, and at the end ``built`` or ``found`` with the content.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engines.build.cache import PlanCache
from engines.build.plan import PlanRecipe
from engines.errors import BundleError


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def main(folder: str, recipe: str, build_s: str, lease_s: str, user_id: str = "") -> None:
    """Get the plan or build it, in ``build_s`` seconds."""
    if user_id:
        os.setuid(int(user_id))
    cache = PlanCache(Path(folder), lease_s=float(lease_s), log=_say)

    def build() -> bytes:
        _say("building")
        time.sleep(float(build_s))
        return f"plan of {os.getpid()}".encode()

    try:
        standing = cache.get_or_build(PlanRecipe.model_validate_json(recipe), build)
    except BundleError as error:
        _say(f"refused: {error}")
    else:
        _say(f"{'built' if standing.built else 'found'} {standing.plan.content.decode()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
