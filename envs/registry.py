"""Every environment of the package, one line each: name -> "module:Class". Imports nothing heavy."""

from __future__ import annotations

ENVIRONMENTS: dict[str, str] = {
    # control: classic control with per-copy physics
    "CartPole": "envs.control.cartpole:CartPole",
    "Acrobot": "envs.control.acrobot:Acrobot",
    "MountainCar": "envs.control.mountain_car:MountainCar",
    "Pendulum": "envs.control.pendulum:Pendulum",
    # memory: the observation alone is never enough
    "TMaze": "envs.memory.tmaze:TMaze",
    "RepeatPrevious": "envs.memory.repeat_previous:RepeatPrevious",
    # prediction: the action is the prediction, info["target"] the truth
    "ImageRows": "envs.prediction.image_rows:ImageRows",
    # adapters: other people's environments under the same contract
    "gymnasium": "envs.adapters.gymnasium:GymnasiumEnv",
    "envpool": "envs.adapters.envpool:EnvPoolEnv",
}

ADAPTERS = ("gymnasium", "envpool")


def register_with_gymnasium() -> None:
    """Register every native environment as `lifelong/<Name>-v0` for `gymnasium.make_vec`.

    Called by Gymnasium itself through the `gymnasium.envs` entry point once `lifelong` is installed.
    """
    import gymnasium

    for name, target in ENVIRONMENTS.items():
        env_id = f"lifelong/{name}-v0"
        if name not in ADAPTERS and env_id not in gymnasium.registry:
            gymnasium.register(id=env_id, vector_entry_point=target)
