"""Sweeps over a Ray cluster of two nodes, which are two raylets on this machine.

Run where ray is installed; CI's leg `cluster` is (`python3 ci/leg.py cluster`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.environment import VARIABLES
from harness.errors import BadOption, WorkerDied
from harness.executors import Bounds, load_executor
from harness.executors.ray import TRIES
from harness.sweep import sweep

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mlx-parity[ray]'")

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
BOUNDS = Bounds(60, 2_000_000_000, lambda task, why: f"stopped: {why}")
# Ray leaves the files that its processes log to open.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes of one core each, which find this tree first."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Nodes take the folder of whoever connects as their own, where they have it.
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": free_port()}
        made = Cluster(initialize_head=True, head_node_args={**head, "env_vars": named("head")})
        made.client = f"ray://127.0.0.1:{head['ray_client_server_port']}"
        made.add_node(num_cpus=1, env_vars=named("second"))
        yield made
        made.shutdown()


@pytest.fixture
def more(cluster):
    """A function that adds a node for one test."""
    added = []

    def add(name: str, **variables: str):
        added.append(cluster.add_node(num_cpus=1, env_vars={**named(name), **variables}))
        return added[-1]

    yield add
    for node in added:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def named(name: str) -> dict[str, str]:
    return {"NODE": name, "PYTHONPATH": PATH}


def on(cluster, notice=None):
    return load_executor(f"ray:{cluster.address}", notice=notice)


def numbered(count: int, **fields) -> list[dict]:
    return [{"n": n, **fields} for n in range(count)]


def pairs(found):
    return sorted((task["n"], result) for task, result in found)


def square(task):
    return task["n"] ** 2


def hangs_on_third(task):
    """A task that never ends where it is the second on the node called third."""
    note(task)
    if os.environ["NODE"] == "third" and count(Path(task["log"]), "third") == 2:
        time.sleep(600)
    return square(task)


def note(task):
    """Leave a line in the task's log: its number, and the node that begins it."""
    with Path(task["log"]).open("a") as file:
        file.write(f"{task['n']} {os.environ.get('NODE')} {os.getpid()}\n")


def begun(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def count(log: Path, name: str) -> int:
    return sum(where == name for _, where, _ in begun(log))


def node(task):
    time.sleep(0.3)
    return os.environ["NODE"]


def variables(task):
    return {name: os.environ.get(name) for name in VARIABLES}


def dies(task):
    note(task)
    if task["dies"] == "once" and len(begun(Path(task["log"]))) > 1:
        return "alive"
    if task["dies"] == "worker":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    os._exit(3)


def does(task):
    if task["what"] == "sleep":
        time.sleep(60)
    if task["what"] == "raise":
        raise ValueError("raised")
    eaten = bytearray(os.urandom(1) * 900_000_000) if task["what"] == "eat" else b""
    time.sleep(60 if eaten else 0)
    return task["what"]


def naps(task):
    note(task)
    time.sleep(60)


# As here


def test_results_are_those_of_this_machine_and_both_nodes_work(cluster):
    executor = on(cluster)
    assert pairs(sweep(square, numbered(6), executor=executor)) == pairs(sweep(square, numbered(6)))
    assert {name for _, name in sweep(node, numbered(4), executor=executor)} == {"head", "second"}


def test_variables_are_those_of_this_process_and_not_rays(cluster, monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # Ray's workers have it as 1
    ((_, found),) = sweep(variables, numbered(1), executor=on(cluster))
    assert found == variables(None)
    assert found["MLX_ENABLE_TF32"] == "0" and found["MKL_NUM_THREADS"] == "3"
    assert found["OMP_NUM_THREADS"] is None


def test_a_client_from_outside_is_answered_alike(cluster):
    executor = load_executor(f"ray:{cluster.client}")
    assert pairs(sweep(square, numbered(2), executor=executor)) == [(0, 0), (1, 1)]


def test_what_a_task_raises_is_raised_after_what_was_done_is_kept(cluster, tmp_path):
    file, tasks = tmp_path / "done", [{"what": what} for what in ("a", "b", "raise")]
    list(sweep(does, tasks[:2], executor=on(cluster), resume=file))
    with pytest.raises(ValueError, match="raised"):
        list(sweep(does, tasks, executor=on(cluster), resume=file))
    assert len(file.read_text().splitlines()) == 2


def test_bounds_hold_on_nodes(cluster):
    tasks = [{"what": what} for what in ("sleep", "a")]
    bounds = Bounds(6, 2_000_000_000, BOUNDS.stopped)
    found = {t["what"]: r for t, r in sweep(does, tasks, executor=on(cluster), bounds=bounds)}
    assert found == {"sleep": "stopped: it took more than 6 s", "a": "a"}
    bounds = Bounds(60, 600_000_000, BOUNDS.stopped)
    ((_, found),) = sweep(does, [{"what": "eat"}], executor=on(cluster), bounds=bounds)
    assert found.startswith("stopped: it took ") and "0.6 GB are allowed" in found


# What dies


def test_a_node_that_dies_loses_no_result_and_one_line_tells_of_it(cluster, more, tmp_path):
    third = more("third")
    log, file = tmp_path / "log", tmp_path / "done"
    code = f"""
import sys
from harness.executors import load_executor
executor = load_executor("ray:{cluster.address}", notice=lambda text: print(text, file=sys.stderr))
from parity_tests.harness.test_ray import *
tasks, file = numbered(9, log={str(log)!r}), Path({str(file)!r})
print(json.dumps(pairs(sweep(hangs_on_third, tasks, executor=executor, resume=file))))
"""
    words = [sys.executable, "-W", "ignore", "-c", code]
    running = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with running:
        while count(log, "third") < 2 and running.poll() is None:
            time.sleep(0.1)
        cluster.remove_node(third, allow_graceful=False)
        out, err = running.communicate(timeout=200)
    assert json.loads(out) == [[n, n * n] for n in range(9)]
    assert err.count("\n") == 1 and err.startswith("try 2 of 3, its worker was lost: ")
    kept = [json.loads(line)["task"]["n"] for line in file.read_text().splitlines()]
    assert sorted(kept) == list(range(9))
    numbers = [n for n, *_ in begun(log)]
    assert len(numbers) == 10 and len(set(numbers)) == 9  # what hung there was begun once more


@pytest.mark.parametrize("how", ["process", "worker"])
def test_what_kills_its_process_is_tried_again_and_then_reported(cluster, tmp_path, how):
    log = tmp_path / "log"
    task = {"n": 0, "dies": how, "log": str(log)}
    with pytest.raises(WorkerDied, match=r"task \{'n': 0, .*(ended with 3|worker was lost)"):
        list(sweep(dies, [task], executor=on(cluster)))
    assert len(begun(log)) == TRIES
    ((_, found),) = sweep(dies, [task], executor=on(cluster), bounds=BOUNDS)
    assert found.startswith("stopped: its ") and len(begun(log)) == 2 * TRIES


def test_what_dies_once_has_a_result(cluster, tmp_path):
    log = tmp_path / "log"
    task = {"n": 0, "dies": "once", "log": str(log)}
    assert list(sweep(dies, [task], executor=on(cluster))) == [(task, "alive")]
    assert len(begun(log)) == 2


# Who is refused


def tree(folder: Path) -> Path:
    """The code of this tree, one comment apart."""
    for package in ("engine", "harness"):
        shutil.copytree(ROOT / package, folder / package)
    with (folder / "harness" / "metrics.py").open("a") as file:
        file.write("# another\n")
    return folder


def older_numpy(folder: Path) -> Path:
    (folder / "numpy-0.9.dist-info").mkdir()
    (folder / "numpy-0.9.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 0.9\n")
    return folder


def no_harness(folder: Path) -> Path:
    (folder / "harness").mkdir()
    (folder / "harness" / "__init__.py").touch()
    return folder


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tree, "the code of harness is "),
        (older_numpy, "numpy is 0.9, here it is "),
        (no_harness, "it has another harness, or none (ModuleNotFoundError"),
    ],
)
def test_a_node_that_would_compute_something_else_is_left_out(
    cluster, more, tmp_path, made, message
):
    path = os.pathsep.join([str(made(tmp_path)), PATH])
    wrong, told = more("wrong", PYTHONPATH=path), []
    found = list(sweep(node, numbered(8), executor=on(cluster, notice=told.append)))
    assert sorted(task["n"] for task, _ in found) == list(range(8))
    assert {name for _, name in found} == {"head", "second"}
    assert len(told) == 1 and message in told[0] and wrong.node_id[:8] in told[0]
    assert "the code of engine" not in told[0]  # which is the same


def test_a_cluster_of_another_device_class_is_refused(cluster, monkeypatch):
    import harness.executors.ray as executor

    here = {**executor.describe("cpu"), "the device class": "metal-apple-m3"}
    monkeypatch.setattr(executor, "describe", lambda kind: here)
    with pytest.raises(BadOption, match=r"no node .* here it is metal-apple-m3"):
        list(sweep(square, numbered(2), executor=on(cluster)))


def test_what_no_node_has_is_said_and_waited_for(cluster, monkeypatch):
    import harness.executors.ray as executor

    class Said(Exception):
        pass

    def notice(text):
        raise Said(text)

    here = {**executor.describe("cpu"), "the device class": "cuda-nvidia-h100"}
    monkeypatch.setattr(executor, "describe", lambda kind: here)
    monkeypatch.setattr(executor, "LOOK", 0.5)
    with pytest.raises(Said, match="no node of the cluster has 1 CPU, 1 GPU: waiting"):
        list(sweep(square, numbered(2), executor=on(cluster, notice=notice)))


def test_where_nobody_listens_one_line_says_so(command):
    for address in ("localhost:9", "ray://localhost:9"):
        words = "golden", "verify", "--golden", ROOT / "golden"
        found = command("harness", *words, "--ray", address)
        assert found.status == 2 and found.err.count("\n") == 1
        assert f"--ray {address}: nobody listens there" in found.err


# At the terminal


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PATH}


def test_a_command_says_what_it_says_without_ray(cluster):
    words = [sys.executable, "-m", "harness", "golden", "verify", "--model", "tiny-gpt2"]
    here, there = (
        subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
        for line in (words, [*words, "--ray", cluster.address])
    )
    assert there.returncode == here.returncode == 0 and here.stdout.count("ok") == 2
    assert (there.stdout, there.stderr) == (here.stdout, here.stderr)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_ends_its_tasks(cluster, tmp_path, how):
    log = tmp_path / "log"
    code = (
        "from parity_tests.harness.test_ray import *\n"
        f"executor = load_executor('ray:{cluster.address}')\n"
        f"list(sweep(naps, numbered(6, log={str(log)!r}), executor=executor))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            if len(begun(log)) == 2:
                break
            time.sleep(0.1)
        workers = [psutil.Process(int(pid)) for *_, pid in begun(log)]
        assert len(workers) == 2 and all(worker.is_running() for worker in workers)
        running.send_signal(how)
        assert psutil.wait_procs(workers, timeout=20)[1] == []
        running.wait(20)
        assert len(begun(log)) == 2
    finally:
        running.kill()
        running.wait()
