"""An agent that streams is the plain program of its paper (Elsayed, Vasan & Mahmood 2024, arXiv 2410.14606, algorithms
3 to 5), written here from torch's functions alone, for a policy without a memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.nn.functional import layer_norm, leaky_relu, linear

from lifelong.agent.online import OnlineAgent

GAMMA, LAM, KAPPA, ENTROPY = 0.99, 0.8, 3.0, 0.01
CONFIG = {
    "policy": {
        "encoder": {"kind": "mlp", "hidden": [16, 12], "activation": "leaky_relu", "norm": "layer", "sparse": 0.5},
        "cell": {"kind": "rnn", "size": 8},
        "reset_memory_on": "step",
    },
    "gradient": "bptt",
    "objective": {"kind": "ac_lambda", "gamma": GAMMA, "lam": LAM, "entropy_weight": ENTROPY},
    "optimizer": {"kind": "obgd", "lr": 1.0, "kappa": KAPPA},
    "strategy": {"kind": "normalize_rewards", "gamma": GAMMA},
    "max_grad_norm": 0,
    "rollout": {"steps": 1},
}


class Plain:
    """Theta and z of a policy with layers of 16 and 12 and a layer of 8, whose parameters begin as those given."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.theta = {name: p.detach().double().clone().requires_grad_() for name, p in parameters.items()}
        self.trace = {name: torch.zeros_like(p) for name, p in self.theta.items()}
        #: of the discounted return: how many, mean, squares
        self.discounted, self.count, self.mean, self.squares = 0.0, 0, 0.0, 0.0

    def __call__(self, obs: np.ndarray) -> tuple[Tensor, Tensor]:
        p, x = self.theta, torch.tensor(obs, dtype=torch.float64)
        for layer in (0, 3):
            x = linear(x, p[f"encoder.layers.{layer}.weight"], p[f"encoder.layers.{layer}.bias"])
            x = layer_norm(x, x.shape, p[f"encoder.layers.{layer + 1}.weight"], p[f"encoder.layers.{layer + 1}.bias"])
            x = leaky_relu(x)
        y = torch.tanh(linear(x, p["cell.input.weight"], p["cell.input.bias"]))
        logits = linear(y, p["actor.linear.weight"], p["actor.linear.bias"])
        return logits.log_softmax(0), linear(y, p["critic.weight"], p["critic.bias"])[0]

    def learn(self, obs: np.ndarray, action: int, reward: float, then: np.ndarray, terminated: bool, cut: bool) -> None:
        self.discounted = GAMMA * self.discounted + reward
        self.count += 1
        before = self.discounted - self.mean
        self.mean += before / self.count
        self.squares += before * (self.discounted - self.mean)
        if self.count > 1:
            reward /= math.sqrt(self.squares / (self.count - 1))
        log_p, value = self(obs)
        error = reward + (0.0 if terminated else GAMMA * float(self(then)[1].detach())) - float(value.detach())
        score = value + log_p[action] - ENTROPY * np.sign(error) * (log_p.exp() * log_p).sum()
        names = [*self.theta]
        slopes = torch.autograd.grad(score, [self.theta[name] for name in names], allow_unused=True)
        for name, slope in zip(names, slopes, strict=True):
            self.trace[name] = GAMMA * LAM * self.trace[name] + (0.0 if slope is None else slope)
        over = KAPPA * max(abs(error), 1.0) * sum(float(z.abs().sum()) for z in self.trace.values())
        with torch.no_grad():
            for name in names:
                self.theta[name] += min(1.0, 1.0 / over) * error * self.trace[name]
        if terminated or cut:
            self.discounted, self.trace = 0.0, {name: torch.zeros_like(z) for name, z in self.trace.items()}


def test_an_agent_that_streams_is_the_plain_program() -> None:
    agent = OnlineAgent(Box(-10.0, 10.0, (3,), np.float32), Discrete(3), CONFIG, seed=2)
    named, draw = agent._trainer.learner.named, np.random.default_rng(0)
    plain, first = Plain(named), {name: p.detach().clone() for name, p in named.items()}
    obs = draw.normal(size=3).astype(np.float32)
    action = agent.act(obs)
    for t in range(1, 121):
        then, reward = draw.normal(size=3).astype(np.float32), float(draw.normal() + (action == t % 3))
        terminated, cut = t % 17 == 0, t % 29 == 0
        plain.learn(obs, action, reward, then, terminated, cut)
        action = agent.act(then, reward, terminated, cut)
        if terminated or cut:
            then = draw.normal(size=3).astype(np.float32)
            action = agent.act(then)
        obs = then
    moved = torch.cat([(p.double() - first[name].double()).flatten() for name, p in named.items()])
    wanted = torch.cat([(plain.theta[name] - first[name].double()).flatten() for name in named])
    assert float(wanted.detach().norm()) > 0.1
    assert float(((moved - wanted).norm() / wanted.norm()).detach()) < 1e-4
