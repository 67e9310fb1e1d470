"""Every environment of the package, one line each: name -> "module:Class". Imports nothing heavy."""

from __future__ import annotations

ENVIRONMENTS: dict[str, str] = {
    # control: classic control with per-copy physics
    "CartPole": "lifelong.envs.control.cartpole:CartPole",
    "Acrobot": "lifelong.envs.control.acrobot:Acrobot",
    "MountainCar": "lifelong.envs.control.mountain_car:MountainCar",
    "Pendulum": "lifelong.envs.control.pendulum:Pendulum",
    # memory: the observation alone is never enough
    "TMaze": "lifelong.envs.memory.tmaze:TMaze",
    "RepeatPrevious": "lifelong.envs.memory.repeat_previous:RepeatPrevious",
    # prediction: the action is the prediction, info["target"] the truth
    "ImageRows": "lifelong.envs.prediction.image_rows:ImageRows",
    # adapters: other people's environments under the same contract
    "gymnasium": "lifelong.envs.adapters.gymnasium:GymnasiumEnv",
    "envpool": "lifelong.envs.adapters.envpool:EnvPoolEnv",
}

ADAPTERS = ("gymnasium", "envpool")
