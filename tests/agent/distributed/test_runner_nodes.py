"""Environment runners on several nodes: the learner goes on when one is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray")

from tests.agent.distributed.test_runners import T, copies_of, runner_rollout


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without CPUs and two nodes that have room for a runner each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_the_runner_of_a_lost_node_comes_back_on_another_and_the_learner_goes_on_meanwhile(nodes: Any) -> None:
    rollout = runner_rollout()
    with rollout.running():
        rollout.collect(T)
        nodes.remove_node(nodes.workers[0], allow_graceful=False)
        seen: list[list[int]] = []
        end = time.monotonic() + 120
        while time.monotonic() < end and rollout.restarts == 0:
            seen.append(copies_of(rollout.collect(T), rollout))
            if len(seen) == 20:
                nodes.add_node(num_cpus=1)
            time.sleep(0.05)
    alone = [copies for copies in seen if len(copies) == 2]
    assert len(alone) >= 10 and all(copies == alone[0] for copies in alone)
    assert rollout.restarts == 1
