"""The JAX program that `benchmarks/peers.py` compares with: everything in one `lax.scan`, jitted; or, `alive`, a jitted
step that a loop over Gymnasium's CartPole calls.

    python benchmarks/programs/recurrent_jax.py '[copies, steps, encoder, units, engine, cell, alive, objective]'

The engine is "rtrl" (eLSTM) or "bptt", the cell "elstm", "gru" or "lstm", `alive` a bool, the objective "actor_critic"
or "ppo" (four epochs of four minibatches of copies; of one copy one minibatch).

The eLSTM (f = sigmoid(F x + v_f c + b_f), z = tanh(Z x + v_z c + b_z), c' = f c + (1 - f) z, its output
sigmoid(W x + U c' + b) c'); exact RTRL in its chunked form: within a chunk by `jax.grad`, before it by the
sensitivities of the state, moved step by step. It needs JAX; alive, Gymnasium too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax
import jax.numpy as jnp

COPIES, STEPS, ENCODER, UNITS, ENGINE, CELL, ALIVE, OBJECTIVE = json.loads(sys.argv[1])
GATES, STATE = {"elstm": (2, UNITS), "gru": (3, UNITS), "lstm": (4, 2 * UNITS)}[CELL]
EPOCHS, MINIBATCHES, CLIP = 4, min(4, COPIES), 0.2
GAMMA, LAMBDA, VALUE, ENTROPY, LR, NORM, ACTIONS = 0.99, 0.95, 0.5, 0.01, 1e-3, 1.0, 2


def parameters(key: Any) -> dict[str, Any]:
    """Weights that are drawn, biases that are zero."""
    width = ENCODER or 4
    shapes = {"weight": (GATES * UNITS, width), "actor": (ACTIONS, UNITS), "critic": (1, UNITS)}
    if CELL == "elstm":
        shapes |= {"vector": (2, UNITS), "out_x": (UNITS, width), "out_c": (UNITS, UNITS)}
    else:
        shapes["hidden"] = (GATES * UNITS, UNITS)
    if ENCODER:
        shapes["encoder"] = (ENCODER, 4)
    keys = jax.random.split(key, len(shapes))
    made = {name: 0.1 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
    biases = {
        "bias": GATES * UNITS,
        **({"out_b": UNITS} if CELL == "elstm" else {}),
        **({"inside": UNITS} if CELL == "gru" else {}),
        "actor_b": ACTIONS,
        "critic_b": 1,
        **({"encoder_b": ENCODER} if ENCODER else {}),
    }
    return {**made, **{name: jnp.zeros(size) for name, size in biases.items()}}


def reset(key: Any) -> Any:
    """Fresh states of all copies."""
    return jax.random.uniform(key, (COPIES, 4), minval=-0.05, maxval=0.05)


def step_env(physics: Any, age: Any, action: Any, key: Any) -> Any:
    """CartPole with autoreset: next physics and age, reward, terminated, truncated, physics before any reset."""
    x, v, angle, spin = physics.T
    force = jnp.where(action == 1, 10.0, -10.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    push = (force + 0.05 * spin**2 * sin) / 1.1
    pull = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    acceleration = push - 0.05 * pull * cos / 1.1
    new = jnp.stack([x + 0.02 * v, v + 0.02 * acceleration, angle + 0.02 * spin, spin + 0.02 * pull], 1)
    terminated = (jnp.abs(new[:, 0]) > 2.4) | (jnp.abs(new[:, 2]) > 0.20943951)
    truncated = age + 1 >= 500
    done = terminated | truncated
    return jnp.where(done[:, None], reset(key), new), jnp.where(done, 0, age + 1), terminated, truncated, new


def encode(p: dict[str, Any], obs: Any) -> Any:
    """The input of the cell."""
    return jnp.tanh(obs @ p["encoder"].T + p["encoder_b"]) if ENCODER else obs


def cell(p: dict[str, Any], x: Any, c: Any) -> tuple[Any, Any]:
    """One step: output and state."""
    u = x @ p["weight"].T + p["bias"]
    if CELL == "gru":
        ur, uz, un = jnp.split(u, 3, -1)
        hr, hz, hn = jnp.split(c @ p["hidden"].T, 3, -1)
        z = jax.nn.sigmoid(uz + hz)
        n = jnp.tanh(un + jax.nn.sigmoid(ur + hr) * (hn + p["inside"]))
        h = n + z * (c - n)
        return h, h
    if CELL == "lstm":
        i, f, g, o = jnp.split(u + c[..., :UNITS] @ p["hidden"].T, 4, -1)
        new = jax.nn.sigmoid(f) * c[..., UNITS:] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(new)
        return h, jnp.concatenate([h, new], -1)
    f = jax.nn.sigmoid(u[:, :UNITS] + p["vector"][0] * c)
    z = jnp.tanh(u[:, UNITS:] + p["vector"][1] * c)
    new = f * c + (1 - f) * z
    return jax.nn.sigmoid(x @ p["out_x"].T + new @ p["out_c"].T + p["out_b"]) * new, new


def heads(p: dict[str, Any], y: Any) -> tuple[Any, Any]:
    """Logits and value."""
    return y @ p["actor"].T + p["actor_b"], (y @ p["critic"].T + p["critic_b"])[:, 0]


def act(p: dict[str, Any], carry: Any, key: Any) -> Any:
    """One step of policy and environment: what goes on, and what was seen."""
    physics, age, c, init = carry
    draw, fresh = jax.random.split(key)
    c = jnp.where(init[:, None], 0.0, c)
    y, new = cell(p, encode(p, physics), c)
    logits, _ = heads(p, y)
    action = jax.random.categorical(draw, logits)
    after, age, terminated, truncated, final = step_env(physics, age, action, fresh)
    y_final, _ = cell(p, encode(p, final), new)
    cut = truncated & ~terminated
    final_value = jnp.where(cut, heads(p, y_final)[1], 0.0)
    seen = physics, init, action, terminated, truncated, final_value, c
    return (after, age, new, terminated | truncated), seen


def outputs(p: dict[str, Any], c0: Any, obs: Any, init: Any) -> Any:
    """Logits and values of a chunk, from the state that it starts from."""
    x = encode(p, obs)

    def go_on(c: Any, xi: Any) -> Any:
        y, c = cell(p, xi[0], jnp.where(xi[1][:, None], 0.0, c))
        return c, y

    _, y = jax.lax.scan(go_on, c0, (x, init))
    return y @ p["actor"].T + p["actor_b"], (y @ p["critic"].T + p["critic_b"])[..., 0]


def loss(p: dict[str, Any], c0: Any, obs: Any, init: Any, action: Any, target: Any, advantage: Any) -> Any:
    """Of a chunk, from the state that it starts from."""
    logits, value = outputs(p, c0, obs, init)
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, action[..., None], -1)[..., 0]
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    return -(chosen * advantage).mean() + VALUE * 0.5 * ((value - target) ** 2).mean() - ENTROPY * entropy.mean()


def returns(value: Any, bootstrap: Any, terminated: Any, truncated: Any, final_value: Any) -> Any:
    """Lambda-returns and their advantages."""
    following = jnp.concatenate([value[1:], bootstrap[None]])
    following = jnp.where(terminated, 0.0, jnp.where(truncated, final_value, following))
    keep = ~(terminated | truncated)

    def back(advantage: Any, at: Any) -> Any:
        v, n, k = at
        advantage = 1.0 + GAMMA * n - v + GAMMA * LAMBDA * k * advantage
        return advantage, advantage

    _, advantage = jax.lax.scan(back, jnp.zeros(COPIES), (value, following, keep), reverse=True)
    return advantage + value, advantage


def move(p: dict[str, Any], carry: Any, chunk: Any) -> Any:
    """The sensitivities of the state to weight, bias and vector, over a chunk."""

    def step(s: Any, at: Any) -> Any:
        x, c, init = at
        S, b, v = s
        u = x @ p["weight"].T + p["bias"]
        f = jax.nn.sigmoid(u[:, :UNITS] + p["vector"][0] * c)
        z = jnp.tanh(u[:, UNITS:] + p["vector"][1] * c)
        df, dz = (c - z) * f * (1 - f), (1 - f) * (1 - z * z)
        a = jnp.where(init[:, None], 0.0, f + df * p["vector"][0] + dz * p["vector"][1])
        local = jnp.stack([df, dz], 1)
        S = a[:, None, :, None] * S + local[..., None] * x[:, None, None, :]
        return (S, a[:, None] * b + local, a[:, None] * v + local * c[:, None]), None

    return jax.lax.scan(step, carry, chunk)[0]


def update(state: Any, _: None) -> Any:
    """One chunk."""
    p, moments, count, world, sensitivities, key = state
    key, own = jax.random.split(key)
    c0 = world[2]
    world, seen = jax.lax.scan(partial(act, p), world, jax.random.split(own, STEPS))
    obs, init, action, terminated, truncated, final_value, c = seen
    y, _ = jax.vmap(partial(cell, p))(encode(p, obs), c)
    value = (y @ p["critic"].T + p["critic_b"])[..., 0]
    y_next, _ = cell(p, encode(p, world[0]), jnp.where(world[3][:, None], 0.0, world[2]))
    target, advantage = returns(value, heads(p, y_next)[1], terminated, truncated, final_value)
    if OBJECTIVE == "ppo":
        log_p = jax.nn.log_softmax(y @ p["actor"].T + p["actor_b"])
        old = jnp.take_along_axis(log_p, action[..., None], -1)[..., 0]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        rows = jax.vmap(lambda k: jax.random.permutation(k, COPIES))(jax.random.split(own, EPOCHS))
        chunk = obs, init, action, target, advantage, old
        acted = p

        def minibatch(now: Any, index: Any) -> Any:
            p, moments, count = now
            some = tuple(each[:, index] for each in chunk)
            grad, d0 = jax.grad(ppo_loss, (0, 1))(p, c0[index], *some)
            if ENGINE == "rtrl":
                grad = boundary(grad, d0, tuple(each[index] for each in sensitivities))
            return step(p, moments, count, grad), None

        now, _ = jax.lax.scan(minibatch, (p, moments, count), rows.reshape(EPOCHS * MINIBATCHES, -1))
        p, moments, count = now
        if ENGINE == "rtrl":
            sensitivities = move(acted, sensitivities, (encode(acted, obs), c, init))
    else:
        chunk = obs, init, action, target, advantage
        p, moments, count, sensitivities = learn(p, moments, count, sensitivities, c0, c, chunk)
    return (p, moments, count, world, sensitivities, key), None


def ppo_loss(
    p: dict[str, Any], c0: Any, obs: Any, init: Any, action: Any, target: Any, advantage: Any, old: Any
) -> Any:
    """Of a minibatch, from the states that it starts from."""
    logits, value = outputs(p, c0, obs, init)
    log_p = jax.nn.log_softmax(logits)
    ratio = jnp.exp(jnp.take_along_axis(log_p, action[..., None], -1)[..., 0] - old)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    return -gain.mean() + VALUE * 0.5 * ((value - target) ** 2).mean() - ENTROPY * entropy.mean()


def boundary(grad: Any, d0: Any, sensitivities: Any) -> Any:
    """The gradient with what came before the chunk."""
    S, b, v = sensitivities
    return grad | {
        "weight": grad["weight"] + jnp.einsum("bn,bgnd->gnd", d0, S).reshape(2 * UNITS, -1),
        "bias": grad["bias"] + jnp.einsum("bn,bgn->gn", d0, b).reshape(-1),
        "vector": grad["vector"] + jnp.einsum("bn,bgn->gn", d0, v),
    }


def step(p: Any, moments: Any, count: Any, grad: Any) -> Any:
    """Clipping and Adam."""
    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grad)))
    scale = jnp.minimum(1.0, NORM / (norm + 1e-6))
    count += 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g * scale, moments[0], grad)
    q = jax.tree.map(lambda q, g: 0.999 * q + 0.001 * (g * scale) ** 2, moments[1], grad)
    size, root = LR / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
    p = jax.tree.map(lambda p, m, q: p - size * m / (jnp.sqrt(q) / root + 1e-8), p, m, q)
    return p, (m, q), count


def learn(p: Any, moments: Any, count: Any, sensitivities: Any, c0: Any, c: Any, chunk: Any) -> Any:
    """One step of the optimiser from a chunk, and the sensitivities after it."""
    grad, d0 = jax.grad(loss, (0, 1))(p, c0, *chunk)
    if ENGINE == "rtrl":
        grad = boundary(grad, d0, sensitivities)
        sensitivities = move(p, sensitivities, (encode(p, chunk[0]), c, chunk[1]))
    return *step(p, moments, count, grad), sensitivities


@jax.jit
def live(state: Any, last: Any, reward: Any, terminated: Any, truncated: Any, first: Any) -> Any:
    """Learn from what came of the last action (its observation is `last`), then act on `first`."""
    p, moments, count, world, sensitivities, key = state
    key, draw = jax.random.split(key)
    obs, action, c0, init = world
    c = jnp.where(init[:, None], 0.0, c0)
    y, new = cell(p, encode(p, obs), c)
    value = heads(p, y)[1]
    y_after, _ = cell(p, encode(p, last), new)
    target = reward + GAMMA * jnp.where(terminated, 0.0, heads(p, y_after)[1])
    chunk = obs[None], init[None], action[None], target[None], (target - value)[None]
    p, moments, count, sensitivities = learn(p, moments, count, sensitivities, c0, c[None], chunk)
    init = terminated | truncated
    y, _ = cell(p, encode(p, first), jnp.where(init[:, None], 0.0, new))
    action = jax.random.categorical(draw, heads(p, y)[0])
    return (p, moments, count, (first, action, new, init), sensitivities, key), action


class Loop:
    """Gymnasium's CartPole, stepped by its own program."""

    def __init__(self, state: Any) -> None:
        import gymnasium
        import numpy as np

        self.env, self.np = gymnasium.make("CartPole-v1"), np
        self.obs, _ = self.env.reset(seed=0)
        p, moments, count, world, sensitivities, key = state
        now = jnp.asarray(self.obs)[None], jnp.zeros(1, jnp.int32), world[2], world[3]
        self.state, self.action = (p, moments, count, now, sensitivities, key), 0

    def run(self, steps: int) -> None:
        """So many steps."""
        for _ in range(steps):
            obs, reward, terminated, truncated, _ = self.env.step(self.action)
            first = self.env.reset()[0] if terminated or truncated else obs
            row = self.np.array([reward], self.np.float32), self.np.array([terminated]), self.np.array([truncated])
            self.state, action = live(self.state, obs[None], *row, first[None])
            self.action = int(action[0])


@partial(jax.jit, static_argnums=1)
def train(state: Any, chunks: int) -> Any:
    """So many chunks."""
    return jax.lax.scan(update, state, None, chunks)[0]


def start() -> Any:
    """Everything that training goes on from."""
    key = jax.random.key(0)
    p = parameters(key)
    zeros = jax.tree.map(jnp.zeros_like, p)
    width = ENCODER or 4
    world = reset(key), jnp.zeros(COPIES, jnp.int32), jnp.zeros((COPIES, STATE)), jnp.ones(COPIES, bool)
    shapes = (COPIES, 2, UNITS, width), (COPIES, 2, UNITS), (COPIES, 2, UNITS)
    return p, (zeros, zeros), jnp.zeros((), jnp.int32), world, tuple(map(jnp.zeros, shapes)), key


if __name__ == "__main__":
    state = start()
    loop = Loop(state) if ALIVE else None
    for line in sys.stdin:
        chunks = max(1, int(line) // (COPIES * STEPS))
        begun = time.process_time()
        if loop:
            loop.run(chunks)
        else:
            state = jax.block_until_ready(train(state, chunks))
        print((time.process_time() - begun) / (chunks * COPIES * STEPS), flush=True)
