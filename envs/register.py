"""Importing this module registers every native environment with Gymnasium as `lifelong/<Name>-v0`.

    import envs.register
    env = gymnasium.make_vec("lifelong/TMaze-v0", num_envs=4096, device="cuda")

Gymnasium 1.x loads no plugins by itself; without the import, name the module in the id:
"lifelong.envs.register:lifelong/TMaze-v0".
"""

from __future__ import annotations

import gymnasium

from lifelong.envs.registry import ADAPTERS, ENVIRONMENTS

for _name, _target in ENVIRONMENTS.items():
    _id = f"lifelong/{_name}-v0"
    if _name not in ADAPTERS and _id not in gymnasium.registry:
        gymnasium.register(id=_id, vector_entry_point=_target)
