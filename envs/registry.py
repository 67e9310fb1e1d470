"""Every environment of the package, one line each: name -> "module:Class". Imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from lifelong.envs.border import blame
from lifelong.envs.errors import EnvError, unknown_name

ENVIRONMENTS: dict[str, str] = {
    # control: classic control with per-copy physics
    "CartPole": "lifelong.envs.control.cartpole:CartPole",
    "Acrobot": "lifelong.envs.control.acrobot:Acrobot",
    "MountainCar": "lifelong.envs.control.mountain_car:MountainCar",
    "Pendulum": "lifelong.envs.control.pendulum:Pendulum",
    "WornCartPole": "lifelong.envs.control.drifting:WornCartPole",
    "WornAcrobot": "lifelong.envs.control.drifting:WornAcrobot",
    "WornMountainCar": "lifelong.envs.control.drifting:WornMountainCar",
    "WornPendulum": "lifelong.envs.control.drifting:WornPendulum",
    # memory: the observation alone is never enough
    "TMaze": "lifelong.envs.memory.tmaze:TMaze",
    "RepeatPrevious": "lifelong.envs.memory.repeat_previous:RepeatPrevious",
    "MemoryChain": "lifelong.envs.memory.memory_chain:MemoryChain",
    "DelayedMatch": "lifelong.envs.memory.delayed_match:DelayedMatch",
    "RepeatFirst": "lifelong.envs.memory.repeat_first:RepeatFirst",
    "Autoencode": "lifelong.envs.memory.autoencode:Autoencode",
    "CountRecall": "lifelong.envs.memory.count_recall:CountRecall",
    "Concentration": "lifelong.envs.memory.concentration:Concentration",
    "HigherLower": "lifelong.envs.memory.higher_lower:HigherLower",
    "Battleship": "lifelong.envs.memory.battleship:Battleship",
    "MineSweeper": "lifelong.envs.memory.mine_sweeper:MineSweeper",
    "MultiarmedBandit": "lifelong.envs.memory.multiarmed_bandit:MultiarmedBandit",
    "PositionOnlyCartPole": "lifelong.envs.memory.hidden_cartpole:PositionOnlyCartPole",
    "VelocityOnlyCartPole": "lifelong.envs.memory.hidden_cartpole:VelocityOnlyCartPole",
    "NoisyPositionOnlyCartPole": "lifelong.envs.memory.hidden_cartpole:NoisyPositionOnlyCartPole",
    "PositionOnlyPendulum": "lifelong.envs.memory.hidden_pendulum:PositionOnlyPendulum",
    "NoisyPositionOnlyPendulum": "lifelong.envs.memory.hidden_pendulum:NoisyPositionOnlyPendulum",
    "LabyrinthExplore": "lifelong.envs.memory.labyrinth:LabyrinthExplore",
    "LabyrinthEscape": "lifelong.envs.memory.labyrinth:LabyrinthEscape",
    "WaterMaze": "lifelong.envs.memory.water_maze:WaterMaze",
    "GridWorld": "lifelong.envs.memory.grid_world:GridWorld",
    # arcade: the games of MinAtar
    "Asterix": "lifelong.envs.arcade.asterix:Asterix",
    "Breakout": "lifelong.envs.arcade.breakout:Breakout",
    "Freeway": "lifelong.envs.arcade.freeway:Freeway",
    "Seaquest": "lifelong.envs.arcade.seaquest:Seaquest",
    "SpaceInvaders": "lifelong.envs.arcade.space_invaders:SpaceInvaders",
    # rooms: first person, in pictures
    "RoomsWaterMaze": "lifelong.envs.rooms.water_maze:RoomsWaterMaze",
    "RoomsSelectNonMatching": "lifelong.envs.rooms.select_non_matching:RoomsSelectNonMatching",
    "RoomsKeyDoor": "lifelong.envs.rooms.key_door:RoomsKeyDoor",
    "RoomsExploreGoal": "lifelong.envs.rooms.explore_goal:RoomsExploreGoal",
    # endless
    "Forager": "lifelong.envs.forager.forager:Forager",
    # prediction: the action is the prediction, info["target"] the truth
    "Copy": "lifelong.envs.prediction.copy:Copy",
    "Adding": "lifelong.envs.prediction.adding:Adding",
    "FlipFlop": "lifelong.envs.prediction.flip_flop:FlipFlop",
    "AssociativeRecall": "lifelong.envs.prediction.associative_recall:AssociativeRecall",
    "Series": "lifelong.envs.prediction.series:Series",
    "Parity": "lifelong.envs.prediction.parity:Parity",
    "ImageRows": "lifelong.envs.prediction.image_rows:ImageRows",
    "Chaos": "lifelong.envs.prediction.chaos:Chaos",
    "GaussianMixture": "lifelong.envs.prediction.gaussian_mixture:GaussianMixture",
    "Lorenz": "lifelong.envs.prediction.lorenz:Lorenz",
    "TraceConditioning": "lifelong.envs.prediction.trace_conditioning:TraceConditioning",
    "HiddenMarkov": "lifelong.envs.prediction.hidden_markov:HiddenMarkov",
    "CellularAutomaton": "lifelong.envs.prediction.cellular_automaton:CellularAutomaton",
    "Addition": "lifelong.envs.prediction.addition:Addition",
    "ModularAddition": "lifelong.envs.prediction.modular_addition:ModularAddition",
    # adapters: other people's environments under the same contract
    "gymnasium": "lifelong.envs.adapters.gymnasium:GymnasiumEnv",
    "envpool": "lifelong.envs.adapters.envpool:EnvPoolEnv",
}

ADAPTERS = ("gymnasium", "envpool")

#: what may stand between one copy of a Gymnasium environment and its agent
WRAPPERS: dict[str, str] = {
    "realtime": "lifelong.envs.wrappers.realtime:RealTime",
    "irregular": "lifelong.envs.wrappers.irregular:Irregular",
}

#: what may stand between a native environment and its agent
LAYERS: dict[str, str] = {
    "frame_stack": "lifelong.envs.wrappers.frame_stack:FrameStack",
    "action_repeat": "lifelong.envs.wrappers.action_repeat:ActionRepeat",
    "sticky_actions": "lifelong.envs.wrappers.sticky_actions:StickyActions",
}


def import_part(kind: str, name: str, known: Mapping[str, str]) -> Any:
    """What `name` stands for: a registered name of `known`, or `module:Attr`; the module is imported.

    Raises:
        EnvError: there is no such module or attribute, or the module raised; says where was looked, or file and line.
    """
    target = known.get(name, name)
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if name in known or not f"{module_name}.".startswith(f"{error.name}."):
            raise EnvError(f"cannot load {kind} {name!r}: {blame(error)}") from error
        places = [place for place in sys.path if place and not place.startswith((sys.prefix, sys.base_prefix))]
        raise EnvError(
            f"{kind} {name!r}: there is no module {module_name!r}; looked in "
            f"{', '.join([*reversed(places[-3:]), 'the installed packages'])}"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise EnvError(f"cannot load {kind} {name!r}: {blame(error)}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise EnvError(unknown_name(f"attribute of {module_name} for {kind}", attribute, public[:20])) from error
    except (Exception, SystemExit) as error:  # a module may make its attributes itself
        raise EnvError(f"cannot load {kind} {name!r}: {blame(error)}") from error
