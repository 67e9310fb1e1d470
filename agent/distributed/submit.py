"""`lifelong run CONFIG --submit ADDRESS`: hand a run to a Ray cluster's Jobs API and follow it."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lifelong.agent import config as configs
from lifelong.agent.config import Config
from lifelong.agent.distributed.cluster import knock, ray_module
from lifelong.agent.errors import ClusterError, ConfigError

#: seconds that a job which is told to stop has to save its checkpoint; Ray's default is 3
STOP_SECONDS = 120
#: exit code of a job that has none of its own, by its status
CODES = {"SUCCEEDED": 0, "STOPPED": 3, "FAILED": 1}
FILE = "submitted.yaml"


def submit(config: Config, address: str, folder: Path, options: list[str], code: Path | None) -> int:
    """Submit the run of `config` into `folder`, print what it prints, and return its exit code; ctrl-C stops it.

    Args:
        config: resolved config; it travels with the job.
        address: of the cluster's dashboard, such as http://head:8265.
        folder: run folder on storage that every node of the cluster has.
        options: more options of `lifelong run`.
        code: a folder with modules that the config names; it travels too.

    Raises:
        ConfigError: Ray's Jobs API is not installed, or an address or folder that cannot be.
        ClusterError: nobody answers, or the cluster refuses the job.
    """
    if not folder.is_absolute():
        raise ConfigError(f"--out is {str(folder)!r}; a submitted run needs a full path that every node has")
    client = _client(address)
    with tempfile.TemporaryDirectory() as place:
        if code is not None:
            shutil.copytree(code, place, dirs_exist_ok=True)
        (Path(place) / FILE).write_text(configs.to_yaml(config))
        try:
            job = client.submit_job(
                entrypoint=shlex.join(["lifelong", "run", FILE, "--out", str(folder), *options]),
                runtime_env={"working_dir": place, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
                metadata={"job_submission_name": config.name},
            )
        except (RuntimeError, ValueError) as error:
            raise ClusterError(f"the cluster at {address} refused the job: {_first_line(error)}") from error
    print(f"job {job} at {address}; ctrl-C stops it with a checkpoint", file=sys.stderr)
    return _follow(client, job)


def _client(address: str) -> Any:
    ray = ray_module()
    from ray.job_submission import JobSubmissionClient

    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port or {"http": 8265, "https": 443}[parts.scheme]
        host = parts.hostname or ""
    except (KeyError, ValueError) as error:
        raise ConfigError(f"--submit is {address!r}; it must look like http://head:8265") from error
    knock(host, port, address)
    try:
        return JobSubmissionClient(f"{parts.scheme}://{host}:{port}")
    except ConnectionError as error:
        raise ClusterError(f"the Jobs API at {address} does not answer: {_first_line(error)}") from error
    except (RuntimeError, ray.exceptions.RayError) as error:  # `ray[default]` is missing, a wrong version, or no token
        raise ClusterError(f"cannot use the Jobs API at {address}: {_first_line(error)}") from error


def _follow(client: Any, job: str) -> int:
    """Print the job's log to its end; its exit code."""
    try:
        asyncio.run(_print_log(client, job))
    except KeyboardInterrupt:
        print("stopping the job; it saves a checkpoint", file=sys.stderr)
        client.stop_job(job)
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.5)
    code = client.get_job_info(job).driver_exit_code
    return CODES[status.value] if code is None else int(code)


async def _print_log(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
