"""Compiled steps of an environment, made from its own eager step.

`BatchedEnv.step` is followed once (`kernels.transitions`) on a twin of the environment, made with the same options and
another number of copies. Its state, its task parameters and every other tensor that is an attribute become inputs;
Python numbers that it reads are constants. What was compiled is compared with the eager step, bit for bit, before it is
used, and where it cannot be had one line says what kept the environment out.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifelong.kernels import build
from lifelong.kernels.dispatch import Op
from lifelong.kernels.loop import Call, Each
from lifelong.kernels.transitions import Branching, Transition, Untraceable, trace

if TYPE_CHECKING:
    from lifelong.envs.base import BatchedEnv

_OP = Op("transitions", "lifelong.kernels.transitions", ("cpu",), (torch.float32,), generated=True)
_log = logging.getLogger("lifelong.envs")
#: numbers of copies of a twin: a length that no other axis has
_COPIES = (61, 67, 71, 73, 79)
_PLAIN = (bool, int, float, str, type(None))
#: what `step` sets
_OWN = frozenset(("state", "age_B", "return_B"))
#: what is set in its constructor and read by no step of its own
_CONTEXT = frozenset(("num_envs", "device", "seed", "random_initial_age"))
#: what `step` reads that does not change what it does
_NOTED = _CONTEXT | {"_watch"}
#: copies and steps on which compiled and eager steps are compared
_CHECKED_COPIES, _CHECKED_STEPS = 37, 48
_said: set[str] = set()

Path = tuple[str | int, ...]


class Differs(Exception):
    """The compiled step is not the eager one; the message says in what."""


@dataclass(frozen=True)
class Program:
    """The compiled step of all environments of one class and one set of options."""

    transition: Transition
    #: where the environment has the tensor of each input that is no state, action or random number
    paths: dict[str, Path]
    #: Python values that are constants of it
    constants: dict[str, Any]


@dataclass(frozen=True)
class CompiledSteps:
    """T steps that `kernels.loop` can make; all tensors but `obs` and `is_init` [T + 1, B, ...] have T rows.

    `obs[t]` is observed before step t and `obs[0]` is the caller's to fill; `is_init[t + 1]` says that step t ended an
    episode. `begin` reads the environment as it is now and draws random numbers, `finish` puts it after the last step;
    both can be called again and again for as long as it `fits`.
    """

    calls: list[Call]
    obs: Tensor
    is_init: Tensor
    final_obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    episode_return: Tensor
    #: `target` and `target_mask` of prediction tasks; other extra results of `advance` are not kept
    info: dict[str, Tensor]
    begin: Callable[[], None]
    finish: Callable[[], None]
    fits: Callable[[], bool]


class CompiledEnv:
    """The compiled steps of one environment.

    Args:
        env: the environment, after its first reset; it is not kept.
        program: of its class and options.
    """

    def __init__(self, env: BatchedEnv, program: Program) -> None:
        self.program, self.transition, B = program, program.transition, env.num_envs
        inputs, outputs = self.transition.inputs, self.transition.outputs
        self._pointers = (ctypes.c_void_p * (len(inputs) + len(outputs)))()
        self._sizes = (ctypes.c_int64 * 2)(B, 1)
        self._at = (ctypes.addressof(self._sizes), ctypes.addressof(self._pointers))
        place = {slot.name: i for i, slot in enumerate(inputs)}
        #: what lies in the environment: place, path, slot; the tensors that were there last, and what is read of them
        self._buffers = [(i, program.paths[s.name], s) for i, s in enumerate(inputs) if s.name in program.paths]
        self._seen: list[Tensor | None] = [None] * len(self._buffers)
        self._read: list[Tensor | None] = [None] * len(self._buffers)
        self._state_type, self._states = type(env.state), [f.name for f in fields(env.state)]
        self._state_places = [(place[f"state.{name}"], name) for name in self._states if f"state.{name}" in place]
        self._age_places = [(place[name], attribute) for name, attribute in _AGES if name in place]
        self._action = next((slot for slot in inputs if slot.name == "action"), None)
        self._action_place = place.get("action")
        self._random = [(i, slot.name) for i, slot in enumerate(inputs) if slot.name.startswith("random.")]
        self._outputs = [(len(inputs) + i, s.name, (B, *s.shape), s.dtype) for i, s in enumerate(outputs)]
        self._constants = list(program.constants.items())

    def fits(self, env: BatchedEnv, action: Tensor) -> bool:
        """Whether the environment still has the numbers that were compiled, and the action is as its space says."""
        attributes, slot = vars(env), self._action
        if any(attributes.get(name, value) != value for name, value in self._constants):
            return False
        return slot is None or (action.dtype == slot.dtype and action.shape == (env.num_envs, *slot.shape))

    def buffers(self, env: BatchedEnv) -> dict[str, Tensor]:
        """Parameters and other attributes that a step reads, by slot, as they are now."""
        self._renew(env)
        return {
            slot.name: tensor
            for (_, _, slot), tensor in zip(self._buffers, self._read, strict=True)
            if tensor is not None
        }

    def _renew(self, env: BatchedEnv) -> None:
        """Look where the environment's attributes lie now."""
        for k, (place, path, slot) in enumerate(self._buffers):
            tensor = look_up(env, path)
            if tensor is self._seen[k]:
                continue
            shape = (env.num_envs, *slot.shape) if slot.copies else slot.shape
            if tensor.shape != shape or tensor.dtype != slot.dtype:
                raise TypeError(
                    f"{slot.name} of {type(env).__name__} became {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
            read = tensor.contiguous()
            self._seen[k] = tensor if read is tensor else None  # a copy is made anew at every step
            self._read[k] = read
            self._pointers[place] = read.data_ptr()

    def step(self, env: BatchedEnv, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """What `BatchedEnv.step` returns."""
        self._renew(env)
        pointers, state = self._pointers, env.state
        random = self.transition.draw(1, env.num_envs, env.generator)
        for place, name in self._random:
            pointers[place] = random[name].data_ptr()
        kept = [getattr(state, name).contiguous() for _, name in self._state_places]
        for (place, _), tensor in zip(self._state_places, kept, strict=True):
            pointers[place] = tensor.data_ptr()
        for place, name in self._age_places:
            pointers[place] = getattr(env, name).data_ptr()
        if self._action_place is not None:
            action = action.contiguous()
            pointers[self._action_place] = action.data_ptr()
        made = {}
        for place, name, shape, dtype in self._outputs:
            made[name] = tensor = torch.empty(shape, dtype=dtype)
            pointers[place] = tensor.data_ptr()
        self.transition.function(*self._at)
        env.state = self._state_type(*[made.pop(f"state.{name}") for name in self._states])
        env.age_B, env.return_B = made.pop("age"), made.pop("return")
        main = made.pop("obs"), made.pop("reward"), made.pop("terminated"), made.pop("truncated")
        return *main, made

    def steps(self, env: BatchedEnv, action_TB: Tensor) -> CompiledSteps:
        """T steps as rows (see `BatchedEnv.compiled_steps`)."""
        T, B = action_TB.shape[:2]
        copied = {name: tensor.clone() for name, tensor in self.buffers(env).items()}
        random = {
            draw.slot.name: torch.empty(T, B, *draw.slot.shape, dtype=draw.slot.dtype) for draw in self.transition.draws
        }
        tensors: dict[str, Any] = {**copied, **{name: Each(rows) for name, rows in random.items()}}
        tensors["action"] = Each(action_TB)
        # the state is written over
        running = {f"state.{name}": getattr(env.state, name) for name in self._states}
        running |= {name: getattr(env, attribute) for name, attribute in _AGES}
        running = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in running.items()}
        results: dict[str, Any] = dict(running)
        rows = {}
        for slot in self.transition.outputs:
            name, following = slot.name, slot.name in ("obs", "_final_obs")
            if name in running or name not in _KEPT:
                continue
            rows[name] = torch.empty(T + following, B, *slot.shape, dtype=slot.dtype)
            results[name] = Each(rows[name][1:] if following else rows[name])
        inputs = [tensors.get(s.name, running.get(s.name)) for s in self.transition.inputs]
        outputs = [results.get(slot.name) for slot in self.transition.outputs]
        threads = torch.get_num_threads() if B >= _MANY else 1
        call = Call(self.transition.functions, (B, threads), (*inputs, *outputs))

        read: dict[str, tuple[Tensor | None, int]] = dict.fromkeys(copied, (None, 0))

        def begin() -> None:
            for name, tensor in self.buffers(env).items():
                last, version = read[name]
                if last is not tensor or version != tensor._version:
                    copied[name].copy_(tensor)
                    read[name] = tensor, tensor._version
            for name in self._states:
                running[f"state.{name}"].copy_(getattr(env.state, name))
            for name, attribute in _AGES:
                running[name].copy_(getattr(env, attribute))
            for name, rows in self.transition.draw(T, B, env.generator).items():
                random[name].copy_(rows)

        def finish() -> None:
            env.state = self._state_type(*[running[f"state.{name}"].clone() for name in self._states])
            env.age_B, env.return_B = running["age"].clone(), running["return"].clone()

        known = {
            name: rows.pop(name) for name in ("obs", "final_obs", "reward", "terminated", "truncated", "episode_return")
        }
        is_init, first = rows.pop("_final_obs"), action_TB[0]
        return CompiledSteps(
            [call], is_init=is_init, **known, info=rows, begin=begin, finish=finish, fits=lambda: self.fits(env, first)
        )


#: results of T steps that are kept, for somebody may read them
_KEPT = frozenset(("obs", "reward", "terminated", "truncated", "final_obs", "_final_obs", "episode_return"))
_KEPT |= {"target", "target_mask"}
_AGES = (("age", "age_B"), ("return", "return_B"))
#: copies from which on several threads share them
_MANY = 8192


def look_up(env: Any, path: Path) -> Any:
    """What lies at a path of attributes, keys and places."""
    found = env
    for step in path:
        if isinstance(found, dict | list | tuple):
            found = found[step]  # type: ignore[index]
        else:
            found = getattr(found, str(step))
    return found


# ---- from a class to its program -------------------------------------------------------------------------------------


_held: list[Any] = []
_programs: dict[tuple[type, str], Program | str] = {}


def available(env: BatchedEnv) -> bool:
    """Whether steps of an environment may be compiled at all: on a CPU, with a compiler, unless kernels are forced."""
    return env.COMPILES and not env.masked and env.device.type == "cpu" and _OP.compiled(env.return_B)


def compiled(env: BatchedEnv) -> CompiledEnv | None:
    """The compiled steps of an environment that was reset; None after one log line if there are none."""
    key = (type(env), _key(env))
    if key not in _programs:
        try:
            _programs[key] = _compile(env)
        except Branching as error:
            _programs[key] = str(error)
        except (Untraceable, Differs) as error:
            _programs[key] = f"it {error}"
        except build.BuildError as error:
            _programs[key] = str(error)
    program = _programs[key]
    if isinstance(program, Program):
        return CompiledEnv(env, program)
    sentence = f"{type(env).__name__} steps in torch, which is slower: {program}"
    if sentence not in _said:
        _said.add(sentence)
        _log.warning(sentence)
    return None


def _options(env: BatchedEnv) -> tuple[list[Any], dict[str, Any]]:
    """The arguments, but for the number of copies, with which the environment was made and a twin can be."""
    args, kwargs = env.made_with
    left_out = {*env.all_params(), *_CONTEXT}
    return list(args[1:]), {name: value for name, value in sorted(kwargs.items()) if name not in left_out}


def _key(env: BatchedEnv) -> str:
    """A text that is another one for other options."""
    options = _options(env)
    if _plain(options):
        return repr(options)
    _held.append(options)  # so that no other object gets its address
    return f"{options!r} {[id(each) for each in (*options[0], *options[1].values())]}"


def _plain(value: Any) -> bool:
    """Whether it is numbers and texts, in lists, tuples and dicts of any depth."""
    if isinstance(value, dict):
        return all(isinstance(key, _PLAIN) and _plain(each) for key, each in value.items())
    return all(map(_plain, value)) if isinstance(value, list | tuple) else isinstance(value, _PLAIN)


def _compile(env: BatchedEnv) -> Program:
    args, options = _options(env)
    for copies in _COPIES:
        try:
            twin = type(env)(copies, *args, **options)
            twin.reset(seed=0)
        except Exception as error:
            raise Untraceable(f"cannot be made a second time ({type(error).__name__}: {error})") from error
        found = dict(_tensors(vars(twin), (), 4))
        if all(copies not in tensor.shape[1:] for tensor in found.values()):
            break
    follow, before = _Follow(twin, found), _outside(type(env))
    traced = trace(follow, follow.samples, copies, twin.generator)
    changed = [name for name, value in _outside(type(env)).items() if before.get(name, value) != value]
    if changed:
        raise Untraceable(
            f"changes {changed[0]}, which is not of one environment; with COMPILES = False nothing is tried"
        )

    def check(transition: Transition) -> None:
        _check(env, Program(transition, follow.paths, follow.constants))

    transition = Transition(type(env).__name__.lower(), traced, check)
    return Program(transition, follow.paths, follow.constants)


def _outside(cls: type) -> dict[str, Any]:
    """Plain values of the classes that an environment is made of, and of their modules, by name."""
    found: dict[str, Any] = {}
    for each in cls.__mro__[:-1]:
        for prefix, scope in ((each.__module__, vars(sys.modules[each.__module__])), (each.__name__, vars(each))):
            found |= {f"{prefix}.{name}": value for name, value in scope.items() if isinstance(value, _PLAIN)}
    return found


def _tensors(value: Any, path: Path, depth: int) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor below a value, with the path to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif depth:
        if isinstance(value, dict):
            parts: Any = [(key, each) for key, each in value.items() if isinstance(key, str)]
        elif isinstance(value, list | tuple):
            parts = enumerate(value)
        elif is_dataclass(value) and not isinstance(value, type):
            parts = [(f.name, getattr(value, f.name)) for f in fields(value)]
        else:
            return
        for key, each in parts:
            yield from _tensors(each, (*path, key), depth - 1)


def _replaced(value: Any, path: Path, new: dict[Path, Tensor], depth: int) -> Any:
    """The value with the tensors of `new` in place of its own."""
    if isinstance(value, Tensor):
        return new.get(path, value)
    if not depth:
        return value
    if isinstance(value, dict):
        return {key: _replaced(each, (*path, key), new, depth - 1) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced(each, (*path, i), new, depth - 1) for i, each in enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _replaced(getattr(value, f.name), (*path, f.name), new, depth - 1) for f in fields(value)}
        return replace(value, **changed)
    return value


class _Follow:
    """The eager step of a twin as a function from tensors by name to tensors by name."""

    def __init__(self, twin: BatchedEnv, found: dict[Path, Tensor]) -> None:
        self.twin = twin
        self.paths = {".".join(map(str, path)): path for path in found if path[0] not in ("state", "age_B", "return_B")}
        self.samples = {"action": torch.as_tensor(twin.action_space.sample())}
        self.samples |= {f"state.{f.name}": getattr(twin.state, f.name) for f in fields(twin.state)}
        self.samples |= {"age": twin.age_B, "return": twin.return_B}
        self.samples |= {name: found[path] for name, path in self.paths.items()}
        self.constants: dict[str, Any] = {}

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        twin = self.twin
        new = {path: tensors[name] for name, path in self.paths.items()}
        for name, value in vars(twin).items():
            vars(twin)[name] = _replaced(value, (name,), new, 4)
        twin._watch = None
        twin.state = type(twin.state)(**{f.name: tensors[f"state.{f.name}"] for f in fields(twin.state)})
        twin.age_B, twin.return_B = tensors["age"], tensors["return"]
        kind = type(twin)
        twin.__class__ = _recording(kind, self.constants)
        try:
            obs, reward, terminated, truncated, info = kind.eager_step(twin, tensors["action"])
        finally:
            object.__setattr__(twin, "__class__", kind)
        results = {"obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated, **info}
        results |= {f"state.{f.name}": getattr(twin.state, f.name) for f in fields(twin.state)}
        return {**results, "age": twin.age_B, "return": twin.return_B}


def _recording(kind: type[BatchedEnv], constants: dict[str, Any]) -> Any:
    """A class like `kind` whose instances note the Python numbers that are read and refuse to be changed."""

    def get(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name not in _NOTED and name in object.__getattribute__(self, "__dict__") and _plain(value):
            constants[name] = copy.deepcopy(value)
        return value

    def set_(self: Any, name: str, value: Any) -> None:
        if name not in _OWN:
            raise Untraceable(f"sets self.{name} in a step; keep it in its state")
        object.__setattr__(self, name, value)

    return type(kind.__name__, (kind,), {"__getattribute__": get, "__setattr__": set_, "__doc__": kind.__doc__})


def _check(env: BatchedEnv, program: Program) -> None:
    """Compare compiled and eager steps of two equal environments, bit for bit, with resets.

    Raises:
        Differs: they are not equal.
    """
    args, options = _options(env)
    B = _CHECKED_COPIES
    limits = [3 + b % 7 if b % 2 else 0 for b in range(B)]
    pair = [type(env)(B, *args, **options) for _ in range(2)]
    for each in pair:
        each.reset(seed=1)
        each.set_params(max_episode_steps=limits)
        each.action_space.seed(0)
    quick, slow = pair
    steps = CompiledEnv(quick, program)
    for t in range(_CHECKED_STEPS):
        if t == _CHECKED_STEPS // 2:
            _vary(pair)
        action = torch.as_tensor(slow.action_space.sample())
        try:
            expected = slow.eager_step(action)
        except Exception as error:
            raise Differs(f"raises {type(error).__name__} when it is checked: {error}") from error
        for name, got, wanted in _results(steps.step(quick, action), expected):
            if got.dtype != wanted.dtype or not _equal(got, wanted):
                raise Differs(f"differs in {name} from what is compiled of it")
        for name in (f.name for f in fields(slow.state)):
            if not _equal(getattr(quick.state, name), getattr(slow.state, name)):
                raise Differs(f"differs in its state's {name} from what is compiled of it")


def _vary(pair: list[BatchedEnv]) -> None:
    """Another value of every parameter that can have one, in half of the copies."""
    first, B = pair[0], pair[0].num_envs
    mask = torch.arange(B) % 3 == 0
    for name, param in first.PARAMS.items():
        near = min(
            max(param.default + (1 if param.integer else 0.1 * (abs(param.default) or 1.0)), param.low), param.high
        )
        for each in pair:
            before = each.state_dict()
            try:
                each.set_params(mask, **{name: near})
            except ValueError:  # it does not go with the others
                each.load_state_dict(before)


def _results(got: Any, wanted: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    names = ("the observation", "the reward", "terminated", "truncated")
    yield from zip(names, got[:4], wanted[:4], strict=True)
    for name, tensor in wanted[4].items():
        yield f"info[{name!r}]", got[4][name], tensor


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())
