"""What a program gives an agent besides observations: rewards, ends of episodes, and what stands in `info`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from lifelong.agent.errors import EnvError, unknown_name
from lifelong.agent.modules.heads import Categorical, Distribution
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.objectives.base import Objective
from lifelong.agent.runtime.converter import Converter, plain_array

#: where environments say which actions there are
MASKS = ("action_mask", "action_masks")
#: where they say which task they are on
TASKS = ("task", "task_id")
Lead = tuple[int, ...]


class Outcome(NamedTuple):
    """What came of the last actions, [B, ...] each."""

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    last: Tensor | None  # the true last observations of episodes that ended, if they are given
    target: Tensor | None  # what was to be predicted


def chosen(ids: Any, copies: int | None) -> list[int]:
    """The copies that a call is about.

    Raises:
        EnvError: there are no such copies, or one is there twice.
    """
    if ids is None:
        return list(range(copies or 1))
    if copies is None:
        raise EnvError("ids are of the copies of a batch, and this agent has one environment; leave them out")
    array = plain_array(ids, "ids")
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise EnvError(f"ids is {ids}; it must be a list of copies, each an int below {copies}")
    found = [int(copy) for copy in array]
    if min(found) < 0 or max(found) >= copies or len(set(found)) != len(found):
        raise EnvError(f"ids is {found}; each must be below {copies}, and once")
    return found


def check_start(reward: Any, terminated: Any, truncated: Any) -> None:
    """Refuse an outcome where no action waits for one.

    Raises:
        EnvError: there is one.
    """
    given = {"reward": reward, "terminated": terminated, "truncated": truncated}
    for name, value in given.items():
        if value is None or value is False:
            continue
        if plain_array(value, f"the argument {name}").any():
            raise EnvError(
                f"{name} is given, and no action waits for it: this is the first observation of an episode; call "
                "act(obs) alone here"
            )


def rewards(reward: Any, lead: Lead, dtype: torch.dtype) -> Tensor:
    """One reward an environment, [B].

    Raises:
        EnvError: another shape, no number, or one that is not finite.
    """
    if isinstance(reward, float) and not lead and abs(reward) <= torch.finfo(dtype).max:
        return torch.tensor([reward], dtype=dtype)
    array = plain_array(reward, "the argument reward")
    if array.dtype.kind == "b":
        raise EnvError("reward is a bool; the order is act(obs, reward, terminated, truncated)")
    if array.shape != lead:
        wanted = f"{lead}, one an environment" if lead else "one number"
        raise EnvError(f"reward has shape {array.shape}; it must be {wanted}")
    made = torch.from_numpy(np.array(array)).reshape(-1).to(dtype)
    if not bool(made.isfinite().all()):
        raise EnvError(f"reward is {reward}, which is too large to be learned from")
    return made


def flags(name: str, value: Any, lead: Lead) -> Tensor:
    """Whether the last actions ended their episodes so, bool [B].

    Raises:
        EnvError: no bool, or another shape.
    """
    if type(value) is bool:
        return torch.full((lead[0] if lead else 1,), value)
    array = plain_array(value, f"the argument {name}")
    if not np.isin(array, (0, 1)).all():
        raise EnvError(f"{name} is {value}; it must be a bool, whether the last action ended the episode so")
    if array.shape not in (lead, ()):
        wanted = f"{lead}, one an environment" if lead else "one number"
        raise EnvError(f"{name} has shape {array.shape}; it must be {wanted}")
    return torch.from_numpy(np.array(np.broadcast_to(array, lead))).reshape(-1).bool()


def last_observations(final_obs: Any, obs: Any, done: Sequence[bool]) -> Any:
    """The true last observations as one array; Gymnasium's has None where no episode ended."""
    if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:
        pairs = zip(final_obs, obs, done, strict=True)
        return np.stack([plain_array(f if ended else o, "final_obs") for f, o, ended in pairs])
    return final_obs


def of_info(info: Any) -> Mapping[str, Any]:
    """`info` as the environment gave it.

    Raises:
        EnvError: it is no dict.
    """
    if info is None:
        return {}
    if not isinstance(info, Mapping):
        raise EnvError(f"info is a {type(info).__name__}; it must be the dict that env.step or env.reset returned")
    return info


def mask_of(info: Mapping[str, Any], obs: Any, lead: Lead, distribution: Distribution, actions: int) -> Tensor | None:
    """Which actions there are now, bool [B, A], as `info["action_mask"]` or `info["action_masks"]` says it, or the part
    `action_mask` of an observation that is a dict (PettingZoo); None if nobody says it.

    Args:
        info: of the last step or reset; with Gymnasium's vector environments `_action_mask` says who gave one.
        obs: the observation.
        lead: () or (B,).
        distribution: of the actions.
        actions: A.

    Raises:
        EnvError: another shape, no bool, no action that is left, or actions that cannot be masked.
    """
    name = next((key for key in MASKS if info.get(key) is not None), None)
    value = info[name] if name else obs.get("action_mask") if isinstance(obs, Mapping) else None
    if value is None:
        return None
    if not isinstance(distribution, Categorical) or isinstance(distribution, EpsilonGreedy):
        what = "values of actions" if isinstance(distribution, EpsilonGreedy) else "actions of this space"
        raise EnvError(
            f"info has an action mask, and {what} cannot be masked from step to step; take it out of info, or use "
            "objective actor_critic or ppo with a Discrete action space"
        )
    if isinstance(value, np.ndarray) and value.dtype == object:
        every = np.ones(actions, bool)
        value = np.stack([every if one is None else np.asarray(one) for one in value])
    array = plain_array(value, "the action mask")
    count = lead[0] if lead else 1
    if array.shape not in ((*lead, actions), (actions,)):
        raise EnvError(f"the action mask has shape {array.shape}; it must be {(*lead, actions)}")
    mask = np.array(np.broadcast_to(array.astype(bool), (count, actions)))
    there = info.get(f"_{name}") if name else None
    if there is not None:
        mask |= ~np.asarray(there, dtype=bool).reshape(-1, 1)
    if not mask.any(1).all():
        raise EnvError("the action mask leaves no action; at least one must be allowed")
    return torch.from_numpy(mask)


def task_of(info: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The task that `info["task"]` or `info["task_id"]` names, by name or index; None if nobody says it.

    Raises:
        EnvError: there is no such task, or copies are on several.
    """
    value = next((info[key] for key in TASKS if info.get(key) is not None), None)
    if value is None:
        return None
    if isinstance(value, str):
        found = {value}
    else:
        array = np.asarray(value)
        if array.dtype.kind in "iu":
            outside = [index for index in array.reshape(-1).tolist() if not 0 <= index < len(names)]
            if outside:
                raise EnvError(f"info has task {outside[0]}, and there are {len(names)} tasks: {', '.join(names)}")
            found = {names[index] for index in array.reshape(-1).tolist()}
        else:
            found = {str(one) for one in array.reshape(-1)}
    if len(found) > 1:
        raise EnvError(f"info has the tasks {', '.join(sorted(found))} in one call; all copies must be on the same one")
    (name,) = found
    if name not in names:
        raise EnvError(unknown_name("task in info", name, names))
    return name


def target_of(target: Any, lead: Lead, space: gymnasium.Space[Any], distribution: Distribution) -> Tensor:
    """What was to be predicted, [B, ...] as the distribution of predictions has it.

    Raises:
        EnvError: another shape, no number, or outside the space.
    """
    array, own = plain_array(target, "the target"), space.shape or ()
    if array.shape != (*lead, *own):
        raise EnvError(f"the target has shape {array.shape}; it must be {(*lead, *own)}: predictions are in {space}")
    if isinstance(space, gymnasium.spaces.Discrete):
        array = array - space.start
        if ((array < 0) | (array >= space.n)).any():
            raise EnvError(f"the target is {target}, which is not in the space {space}")
    made = torch.from_numpy(np.array(array)).to(distribution.action_dtype)
    return made.reshape(lead[0] if lead else 1, *distribution.action_shape)


class Given:
    """Reads what a program gives beside observations.

    Args:
        converter: of observations and actions.
        objective: learns from it.
        kind: its name.

    Attributes:
        masked: whether the program says which actions there are, which the first call decides; None: there was none.
    """

    def __init__(self, converter: Converter, objective: Objective, kind: str) -> None:
        self._converter, self._env, self._kind = converter, converter.env, kind
        self._distribution, self._predicts = objective.distribution, objective.needs_target
        self.masked: bool | None = None

    def mask(self, info: Mapping[str, Any], obs: Any, lead: Lead, task: int) -> Tensor | None:
        """The actions that there are, [B, A]; None if nobody ever says it.

        Raises:
            EnvError: see `mask_of`; there was none in the first call.
        """
        if self.masked is False and not info and not isinstance(obs, Mapping):
            return None
        env, distribution = self._env, self._distribution
        size = getattr(distribution, "size", 0)
        own = env.action_count[env.group_of[task]] if env.padded else size
        found = mask_of(info, obs, lead, distribution, own)
        if self.masked is None:
            self.masked = found is not None
        if not self.masked:
            if found is not None:
                raise EnvError("info has an action mask, and that of the first call had none; give info in every call")
            return None
        if found is None:
            found = torch.ones(lead[0] if lead else 1, own, dtype=torch.bool)
        return torch.nn.functional.pad(found, (0, size - own)).to(env.device)

    def outcome(
        self,
        given: Mapping[str, Any],
        info: Mapping[str, Any],
        obs: Any,
        lead: Lead,
        task: int,
        final_obs: Any,
        needless: bool,
    ) -> Outcome:
        """What came of the last actions; `needless`: their rewards need not be there.

        Raises:
            EnvError: something is missing or does not fit.
        """
        env, dtype, reward, target = self._env, self._converter.dtype, given["reward"], given["target"]
        if reward is None:
            if not (needless or self._predicts):
                raise EnvError("the last action waits for its reward; call act(obs, reward, terminated, truncated)")
            reward_B = torch.zeros(lead[0] if lead else 1, dtype=dtype)
        else:
            reward_B = rewards(reward, lead, dtype)
        terminated_B, truncated_B = (flags(name, given[name], lead) for name in ("terminated", "truncated"))
        final_obs = info.get("final_obs") if final_obs is None else final_obs
        last = None
        if final_obs is not None and bool((terminated_B | truncated_B).any()):
            done = (terminated_B | truncated_B).tolist()
            last = self._converter.observations(last_observations(final_obs, obs, done), task, lead)
        if target is not None and not self._predicts:
            raise EnvError(f"a target is given, and objective {self._kind} does not learn from targets; use supervised")
        target = info.get("target") if target is None and self._predicts else target
        if target is not None:
            space = env.envs[env.group_of[task]].single_action_space
            target = target_of(target, lead, space, self._distribution).to(env.device)
        device = env.device
        return Outcome(reward_B.to(device), terminated_B.to(device), truncated_B.to(device), last, target)
