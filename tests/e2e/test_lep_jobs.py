"""Jobs through the real `lep`: created with every option, observed, stopped and started, broken, cloned, removed."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

from cell import Done, eventually
from lep import Lep, document, documents, rows

SAYS = (
    'echo "worker $NODE_RANK of $WORLD_SIZE, A=$A K=$K, job $LEPTON_JOB_NAME of $LEPTON_WORKSPACE_ID";'
    ' echo "index $LEPTON_JOB_WORKER_INDEX/$LEPTON_JOB_TOTAL_WORKERS master $MASTER_ADDR:$MASTER_PORT"'
)
MEET = """python3 - <<'CODE'
import os, socket, time
rank, size = int(os.environ["NODE_RANK"]), int(os.environ["WORLD_SIZE"])
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    server = socket.create_server(("", address[1]))
    for _ in range(size - 1):
        other, _ = server.accept()
        print("met", other.recv(16).decode(), flush=True)
        other.sendall(b"ok")
else:
    for _ in range(600):
        try:
            with socket.create_connection(address, 5) as other:
                other.sendall(b"worker-%d" % rank)
                print("heard", other.recv(16).decode(), flush=True)
                break
        except OSError:
            time.sleep(0.1)
CODE"""


def created(done: Done) -> str:
    found = re.search(r"ID: (\S+)", done.out)
    assert found, done
    return found[1]


def create(lep: Lep, name: str, command: str, *more: str) -> str:
    return created(lep("job", "create", "-n", name, "-rs", "cpu.small", "--command", command, *more))


def state(lep: Lep, job: str) -> str:
    return str(lep.ask(f"/jobs/{job}", job_query_mode="alive_and_archive")["status"]["state"])


def reaches(lep: Lep, job: str, wanted: str) -> None:
    eventually(lambda: state(lep, job) == wanted, f"{job} is {wanted}")


def listed(lep: Lep, *words: str) -> dict[str, list[str]]:
    """The rows of `lep job list` by id."""
    return {row[0].split()[-1]: row for row in rows(lep("job", "list", *words).out)[1:]}


def test_a_job_with_many_options_from_creation_to_archive(lep: Lep) -> None:
    lep("secret", "create", "-n", "job-key", "-v", "s3cr3t-value")
    job = create(
        lep, "train", SAYS, "-w", "2", "-e", "A=b c", "-s", "K=job-key", "-ng", "test", "--max-failure-retry", "1",
        "--max-job-failure-retry", "1", "--ttl-seconds-after-finished", "3600", "--shared-memory-size", "64",
        "--visibility", "public", "--container-image", "python:3.11", "--log-collection", "true",
    )  # fmt: skip
    assert job.startswith("train-"), "names need not be unique, ids are"
    reaches(lep, job, "Completed")

    shown = document(lep("job", "get", "-i", job).out)
    spec, status = shown["spec"], shown["status"]
    assert (shown["metadata"]["name"], shown["metadata"]["id"]) == ("train", job)
    assert shown["metadata"]["owner"], "who made it is shown"
    assert (spec["completions"], spec["parallelism"], spec["intra_job_communication"]) == (2, 2, True)
    assert (spec["max_failure_retry"], spec["max_job_failure_retry"]) == (1, 1)
    assert (spec["ttl_seconds_after_finished"], spec["shared_memory_size"]) == (3600, 64)
    assert spec["container"]["image"] == "python:3.11"
    assert spec["container"]["command"][:2] == ["/bin/bash", "-c"]
    assert {"name": "A", "value": "b c"} in [without_nulls(item) for item in spec["envs"]]
    assert {"name": "K", "value_from": {"secret_name_ref": "job-key"}} in [without_nulls(item) for item in spec["envs"]]
    assert spec["affinity"]["allowed_dedicated_node_groups"] == ["test-0001"]
    assert (status["state"], status["succeeded"], status["failed"], status["active"]) == ("Completed", 2, 0, 0)
    assert status["completion_time"] > status["creation_time"] > 1e12, "milliseconds"
    assert "s3cr3t-value" not in lep("job", "get", "-n", "train").out

    row = listed(lep)[job]
    assert row[0].split() == ["train", job]
    assert (row[2], row[5], row[6]) == ("Completed", "2", "cpu.small"), row
    assert row[4] == "test-0001", row

    copies = rows(lep("job", "replicas", "-i", job).out, ruled=False)[1:]
    names = sorted(item[1] for item in copies)
    assert [re.match(rf"{job}-(\d)-\w+$", name)[1] for name in names] == ["0", "1"], names  # type: ignore[index]
    assert all(item[2].startswith("node-") for item in copies), copies
    nodes = document(lep("job", "nodes", "-i", job).out)
    assert sorted(nodes) == sorted(item[2] for item in copies)

    for index in (0, 1):
        text = lep("job", "log", "-i", job, "-r", names[index]).out
        assert f"worker {index} of 2, A=b c K=s3cr3t-value, job {job} of default" in text, text
        assert re.search(rf"index {index}/2 master [\d.]+:\d+", text), text
        assert "End of log" in text
    events = rows(lep("job", "events", "-i", job).out, ruled=False)[1:]
    assert all(item[0] == job and item[4].isdigit() for item in events), events
    # Its image is not what ran: a cell of processes says so once.
    assert [item[1] for item in events if item[2] == "ImageNotUsed"] == ["Warning"], events

    removed_and_archived(lep, job)
    lep("secret", "remove", "-n", "job-key")


def removed_and_archived(lep: Lep, job: str) -> None:
    assert f"Job {job} deleted" in lep("job", "remove", "-i", job).out
    eventually(lambda: not any(item.name == job for item in lep.cell.cloud.ps(all=True)), "it is gone")
    gone = lep("job", "get", "-i", job, code=1)
    assert "404" in gone.out + gone.err
    assert job not in listed(lep)
    kept = listed(lep, "--include-archived")[job]
    assert kept[2] in ("Archived", "Completed"), kept
    shown = document(lep("job", "get", "-i", job, "--include-archived").out)
    assert shown["spec"]["completions"] == 2
    text = lep("log", "get", "-j", job).out
    assert "worker 0 of 2" in text, "its log outlives it"


def without_nulls(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value is not None}


def test_workers_meet_at_the_first_one(lep: Lep) -> None:
    job = create(lep, "meet", MEET, "-w", "3")
    reaches(lep, job, "Completed")
    text = lep("log", "get", "-j", job, "--without-timestamp").out
    assert text.count("met worker-1") == 1, text
    assert text.count("met worker-2") == 1, text
    assert text.count("heard ok") == 2, text
    lep("job", "remove", "-i", job)


def test_stop_start_clone_and_the_filters(lep: Lep) -> None:
    job = create(lep, "long", "echo begun; sleep 600")
    reaches(lep, job, "Running")
    assert set(listed(lep, "-s", "run")) == {job}
    assert set(listed(lep, "-n", "LON")) == {job}
    assert listed(lep, "-s", "fail") == {}
    owner = document(lep("job", "get", "-i", job).out)["metadata"]["owner"]
    assert set(listed(lep, "-u", owner[:3].upper())) == {job}
    assert listed(lep, "-u", "nobody-of-this-name") == {}
    # Our own command sees it under its id.
    assert job in lep.cell.lepton("ps").out

    assert f"Job {job} stopped successfully" in lep("job", "stop", "-i", job).out
    reaches(lep, job, "Stopped")
    assert "No action" in lep("job", "stop", "-i", job).out
    assert f"Job {job} started successfully" in lep("job", "start", "-i", job).out
    reaches(lep, job, "Running")
    copy = re.search(r"Job (\S+) cloned", lep("job", "clone", "-i", job).out)
    assert copy is not None
    assert copy[1].startswith("long-clone-")
    reaches(lep, copy[1], "Running")
    assert document(lep("job", "get", "-n", "long-clone").out)["spec"]["container"]["command"][2].startswith(
        "echo begun"
    )

    refused = lep("job", "stop-all", "-u", owner, "-n", "long", typed="7\n", code=1)
    assert "mismatch" in refused.out
    lep("job", "stop-all", "-u", owner, "-n", "long", typed="1\n")
    reaches(lep, job, "Stopped")
    assert state(lep, copy[1]) == "Running"
    both = listed(lep, "-s", "run", "-s", "stopped")
    assert set(both) == {job, copy[1]}
    lep("job", "remove-all", "-u", owner, "-s", "stopped", typed="1\n")
    lep("job", "remove", "-n", "long-clone")
    eventually(lambda: not lep.cell.cloud.ps(), "nothing of it is left")


def test_what_breaks_is_said(lep: Lep) -> None:
    job = create(lep, "broken", "echo trying; exit 3", "--max-failure-retry", "1")
    reaches(lep, job, "Failed")
    shown = document(lep("job", "get", "-i", job).out)["status"]
    assert (shown["failed"], shown["succeeded"]) == (2, 0), shown
    events = lep("job", "events", "-i", job).out
    assert "exit code 3" in events, events
    assert lep("log", "get", "-j", job, "--without-timestamp").out.count("trying") == 2
    assert "No action" in lep("job", "start", "-i", job).out, "what failed is not started again"
    lep("job", "remove", "-i", job)

    killed = create(lep, "killed", "sleep 600", "--max-failure-retry", "0")
    reaches(lep, killed, "Running")
    pid = next(copy.pid for copy in lep.cell.cloud.replicas(killed) if copy.pid)
    eventually(lambda: kill(pid), "it is killed")
    reaches(lep, killed, "Failed")
    assert "signal 9" in lep("job", "events", "-i", killed).out
    lep("job", "remove", "-i", killed)


def kill(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def test_what_finds_no_room_waits_in_order(lep: Lep) -> None:
    first = create(lep, "fills", "sleep 600", "-w", "3", "-rs", "cpu.half")
    reaches(lep, first, "Running")
    second = create(lep, "queued", "echo ran", "-w", "3", "-rs", "cpu.half")
    third = create(lep, "behind", "echo ran", "-w", "3", "-rs", "cpu.half")
    reaches(lep, second, "Queueing")
    reaches(lep, third, "Queueing")
    events = lep("job", "events", "-i", third).out
    assert second in events, f"who it waits for: {events}"
    lep("job", "stop", "-i", first)
    reaches(lep, second, "Completed")
    reaches(lep, third, "Completed")
    ends = {job: documents(lep("job", "get", "-i", job).out)[0]["status"]["creation_time"] for job in (second, third)}
    assert ends[second] <= ends[third]
    for job in (first, second, third):
        lep("job", "remove", "-i", job)


def test_a_start_that_is_scheduled(lep: Lep) -> None:
    soon = time.strftime("UTC:%Y/%m/%d %H", time.gmtime(time.time() + 7200))
    late = create(lep, "later", "echo ran", "--start-at", "tomorrow 13:10")
    reaches(lep, late, "Awaiting")
    shown = document(lep("job", "get", "-i", late).out)["spec"]["time_schedule"]["start_at"]
    assert shown > time.time() + 3600, soon
    lep("job", "remove", "-i", late)


def test_what_a_job_must_not_be_called(lep: Lep) -> None:
    refused = lep("job", "create", "-n", "Bad_Name", "-rs", "cpu.small", "--command", "true", code=1)
    assert "Bad_Name" in refused.out + refused.err or "name" in (refused.out + refused.err).lower()
    refused = lep("job", "create", "-n", "shape", "-rs", "cpu.enormous", "--command", "true", code=1)
    assert "cpu.enormous" in refused.out + refused.err
    refused = lep("job", "create", "-n", "key", "-rs", "cpu.small", "--command", "true", "-s", "NO_SUCH_KEY", code=1)
    assert "NO_SUCH_KEY" in refused.out + refused.err
    assert lep("job", "get", "-i", "nothing-abc123", code=1).code == 1
