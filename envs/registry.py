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
