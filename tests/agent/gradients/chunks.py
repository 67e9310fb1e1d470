"""A history of random data in chunks, its gradient as one graph, and the same chunk by chunk as the learner has it."""

from __future__ import annotations

import torch
from torch import Tensor

from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Outputs, Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.replay.chunk import Chunk
from tests.agent.support import act_through, make_policy, random_chunk, slice_steps

B = 5


def double_policy(cell: str, size: int = 7) -> Policy:
    policy = make_policy(cell, size, observation=4).double()
    with torch.no_grad():
        for name, parameter in policy.cell.named_parameters():
            if name == "weight_recurrent":
                parameter.normal_(std=1.0)
    return policy


def history(policy: Policy, steps: int, chunks: int) -> Chunk:
    """Random data of `chunks` chunks: resets inside chunks, exactly on their borders and at the first step."""
    data = random_chunk(policy, steps * chunks, B, dtype=torch.float64)
    data.is_init[:] = torch.rand(steps * chunks, B, generator=torch.Generator().manual_seed(5)) < 0.08
    data.is_init[:, 4] = False  # one copy remembers everything
    data.is_init[0, 0] = True  # at the very first step
    data.is_init[steps, 1] = True  # on a border
    data.is_init[2 * steps, 1:3] = True
    if steps > 1:
        data.is_init[steps + steps // 2, 3] = True  # inside
        data.is_init[2 * steps - 1, 0] = True  # at the last step of a chunk
    return data


def split(policy: Policy, data: Chunk, steps: int) -> list[Experience]:
    """The experience cut into chunks, each starting from the memory that acting left there."""
    whole, _ = act_through(policy, data)
    parts = []
    for start in range(0, data.steps, steps):
        stop = start + steps
        bootstrap = torch.full((B,), 0.1 * start, dtype=data.reward.dtype)
        chunk = slice_steps(data, start, stop, whole.state_TBS[start], bootstrap)
        parts.append(
            Experience(chunk, whole.x_TBD[start:stop], whole.state_TBS[start:stop], chunk.reward, chunk.is_init)
        )
    return parts


def gradients_of(policy: Policy) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def whole_history_gradient(policy: Policy, data: Chunk, parts: list[Experience]) -> dict[str, Tensor]:
    """Gradient of the sum of the chunks' losses through one forward pass over all steps."""
    objective = ActorCritic(policy.distribution)
    policy.zero_grad()
    outputs = policy.sequence(data, data.state, current=data.copies)
    loss, start = torch.zeros((), dtype=torch.float64), 0
    for part in parts:
        stop = start + part.chunk.steps
        here = Outputs(outputs.policy[start:stop], outputs.value[start:stop])
        loss, start = loss + objective.loss(here, part.chunk, {})[0], stop
    loss.backward()
    return gradients_of(policy)


def chunked_gradient(
    policy: Policy, parts: list[Experience], engine: GradientEngine, *, only_pass: bool = False
) -> dict[str, Tensor]:
    """The same sum chunk by chunk, as the learner does it."""
    objective = ActorCritic(policy.distribution)
    policy.zero_grad()
    for part in parts:
        trace = engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init, only_pass=only_pass)
        state = engine.attach(part.chunk.state)
        outputs = policy.sequence(part.chunk, state, current=part.chunk.copies, through=engine.sequence)
        loss, _ = objective.loss(outputs, part.chunk, {})
        loss.backward()
        engine.advance(trace)
    return gradients_of(policy)


def max_relative_error(got: dict[str, Tensor], expected: dict[str, Tensor], names: list[str]) -> float:
    """Largest over the parameters of max |difference| / max |expected|."""
    zero = torch.zeros(())  # of what the loss does not reach
    errors = [(got.get(n, zero) - expected[n]).abs().max() / expected[n].abs().max() for n in names if n in expected]
    return max(map(float, errors))
