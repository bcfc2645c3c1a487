"""Several engines as one, by Ray: replicas that serve, and actors that sample rollouts.

Ray is an optional dependency (`sounding[cluster]`); only modules named here import it, when they
are called: `replica`, `request_router`, `serving`, `application`, `rollout_actors`.
"""

import importlib.util


def require_ray(purpose: str) -> None:
    """Raise ValueError, saying how to install it, where Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            f"{purpose} needs Ray, which is not installed: pip install 'sounding[cluster]'"
        )
