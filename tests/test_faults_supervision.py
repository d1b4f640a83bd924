"""Samplers that die, hang or send what they must not: nothing is lost and nothing hangs."""

import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable

import floors
import numpy as np
import pytest
from sampler_stand_ins import ADMISSION, RUN_ID, StandIns, group, submission

from asympo_jax.runtime import wire
from asympo_jax.runtime.broker import Broker
from asympo_jax.runtime.leases import Closed, Lease, Refused
from asympo_jax.runtime.supervisor import Supervisor
from asympo_jax.runtime.tickets import Pacing

PATIENCE_S = 120.0


def open_broker(lag: int = 2, lease_s: float = 1e6, clock: Callable[[], float] = time.monotonic):
    """A broker that leases two tickets, which are an update."""
    pacing = Pacing("ticket", lag, num_updates=6, prompts_per_update=2, prompts_per_lease=2)
    broker = Broker(
        pacing,
        2 * max(1, lag),
        clock=clock,
        run_id=RUN_ID,
        admission=ADMISSION,
        lease_s=lease_s,
    )
    broker.open(0)
    return broker


def first_lease(attempt: int) -> Lease:
    return Lease(0, attempt, 0, RUN_ID)


GROUPS = [group(0), group(1)]


def end(broker: Broker, samplers: Supervisor) -> None:
    """Ends a run whose samplers wait."""
    broker.close()
    samplers.stop(0.0)


def next_update(broker: Broker, version: int) -> list[int]:
    """Trains on a batch; its tickets."""
    tickets = [each.ticket for each in broker.next_batch(PATIENCE_S)]
    broker.complete(version, tickets)
    broker.publish(version)
    return tickets


@pytest.fixture
def stand_ins(tmp_path):
    """Programs on a broker whose first lease is theirs; `good-k` hands in its attempt k."""
    made = StandIns(tmp_path, open_broker())
    for attempt in range(4):
        made.write(f"good-{attempt}", submission(first_lease(attempt), GROUPS))
    made.write("failed", wire.encode({"type": "failed", "cause": "it says why"}))
    return made


def test_an_overdue_lease_goes_to_another_and_the_late_result_is_a_counted_duplicate():
    now = [0.0]
    broker = open_broker(lease_s=10.0, clock=lambda: now[0])
    late = broker.lease((0, 0))
    now[0] = 10.0
    assert [(out.lease, out.holder) for out in broker.take_back_overdue()] == [(late, (0, 0))]
    again = broker.lease((1, 0))
    assert (again.number, again.attempt) == (0, 1)
    broker.submit(again, GROUPS, 0.0, (1, 0))
    with pytest.raises(Refused, match="not out"):
        broker.submit(late, GROUPS, 0.0, (0, 0))
    found = broker.metrics()
    assert (found["refused/duplicate"], found["leases/expired"]) == (1, 1)
    assert found["tickets/reissued"] == found["queue/depth"] == 2


def test_a_lease_that_is_handed_in_leaves_nothing_behind():
    broker = open_broker()
    broker.submit(broker.lease(), GROUPS, 0.0)
    assert not broker._out._attempts and not broker._out.numbers


def test_a_lease_that_is_not_overdue_stays():
    now = [0.0]
    broker = open_broker(lease_s=10.0, clock=lambda: now[0])
    broker.lease((0, 0))
    now[0] = 9.0
    second = broker.lease((0, 0))
    now[0] = 11.0
    assert [out.lease.number for out in broker.take_back_overdue()] == [0]
    broker.submit(second, [group(2), group(3)], 0.0, (0, 0))


def test_a_sampler_that_stops_is_killed_at_the_deadline_and_another_does_its_work(stand_ins):
    stand_ins.broker = broker = open_broker(lease_s=2.0)
    samplers = stand_ins.start(["lease(); stop()", "lease(); submit('good-1'); wait()"])
    assert [each.ticket for each in broker.next_batch(PATIENCE_S)] == [0, 1]
    assert not stand_ins.is_alive(0, 0)
    assert "signal 9 (its lease 0 was not handed in within runtime.lease_s)" in stand_ins.said[0]
    end(broker, samplers)
    found = broker.metrics()
    assert (found["leases/expired"], found["samplers/restarts"]) == (1, 1)
    assert not stand_ins.is_alive(0, 1)


def test_a_sampler_that_hangs_before_its_first_lease_is_killed_and_told_of(stand_ins):
    broker = stand_ins.broker
    samplers = stand_ins.start(["stop()"], max_restarts=0, start_s=2.0)
    with pytest.raises(Closed, match=r"signal 9 \(it asked for no lease within runtime\.lease_s"):
        broker.next_batch(PATIENCE_S)
    samplers.stop(PATIENCE_S)
    assert not stand_ins.is_alive(0, 0)


@pytest.mark.parametrize(
    ("dies", "works", "num_reissued"),
    [
        ("lease(); kill()", "good-1", 2),
        ("lease(); send(submitting, frame('good-0'), 0.5); kill()", "good-1", 2),
        ("kill()", "good-0", 0),
    ],
)
def test_a_sampler_that_is_killed_is_started_again_and_its_tickets_are_used_once(
    stand_ins, dies, works, num_reissued
):
    broker = stand_ins.broker
    samplers = stand_ins.start([dies, f"lease(); submit('{works}'); wait()"])
    assert [each.ticket for each in broker.next_batch(PATIENCE_S)] == [0, 1]
    end(broker, samplers)
    found = broker.metrics()
    assert (found["samplers/restarts"], found["tickets/reissued"]) == (1, num_reissued)
    assert found["refused/frame"] == ("0.5" in dies)
    assert "sampler 0 ended with signal 9" in stand_ins.said[0]


def test_a_sampler_that_is_killed_while_idle_takes_no_lease_along(stand_ins):
    stand_ins.broker = broker = open_broker(lag=0)
    stand_ins.write("next", submission(Lease(1, 0, 1, RUN_ID), [group(2, 1), group(3, 1)]))
    dies = "lease(); submit('good-0'); send(leasing, frame('lease')); kill()"
    samplers = stand_ins.start([dies, "lease(); submit('next'); wait()"])
    assert len(broker.next_batch(PATIENCE_S)) == 2
    assert stand_ins.has_said(PATIENCE_S), "it is started again before there is a lease for it"
    broker.complete(1, [0, 1])
    broker.publish(1)
    assert next_update(broker, 2) == [2, 3]
    end(broker, samplers)
    assert broker.metrics()["tickets/reissued"] == 0


def test_what_a_sampler_sent_before_it_was_killed_still_counts(stand_ins):
    broker = stand_ins.broker
    stand_ins.write("next", submission(Lease(1, 0, 0, RUN_ID), [group(2), group(3)]))
    dies = "lease(); send(submitting, frame('good-0')); kill()"
    samplers = stand_ins.start([dies, "lease(); submit('next'); wait()"])
    assert next_update(broker, 1) == [0, 1]
    assert next_update(broker, 2) == [2, 3]
    end(broker, samplers)
    found = broker.metrics()
    assert (found["samplers/restarts"], found["tickets/reissued"]) == (1, 0)


def changed_group(**fields) -> bytes:
    return submission(first_lease(0), [dataclasses.replace(GROUPS[0], **fields), GROUPS[1]])


# What it sends, and as what it is counted.
SINS = {
    "garbage": (b"no message", "frame"),
    "a message of no kind": (wire.encode({"type": "sing"}), "frame"),
    "too many bytes": (
        submission(first_lease(0), GROUPS, more=bytes(ADMISSION.max_frame_bytes(2))),
        "frame",
    ),
    "no groups": (wire.encode({"type": "submit"}), "frame"),
    "an endless time": (submission(first_lease(0), GROUPS, busy_s=float("inf")), "frame"),
    "no tokens": (changed_group(length_G=np.zeros(2, np.int32)), "length"),
    "ids beyond the vocabulary": (
        changed_group(response_GT=np.full((2, 3), 10, np.int32)),
        "vocabulary",
    ),
    "another type": (changed_group(reward_G=np.zeros(2, np.float64)), "shape"),
    "a version from the future": (changed_group(version=7), "version"),
    "another run": (submission(Lease(0, 0, 0, "run-2"), GROUPS), "run"),
    "tickets of another lease": (submission(first_lease(0), [group(2), group(3)]), "tickets"),
}


@pytest.mark.parametrize("sin", SINS)
def test_a_sampler_that_sends_what_must_not_come_in_is_killed_and_its_work_done_again(
    stand_ins, sin
):
    frame, reason = SINS[sin]
    stand_ins.write("sin", frame)
    broker = stand_ins.broker
    samplers = stand_ins.start(
        ["lease(); send(submitting, frame('sin')); stop()", "lease(); submit('good-1'); wait()"]
    )
    batch = broker.next_batch(PATIENCE_S)
    end(broker, samplers)
    assert [each.ticket for each in batch] == [0, 1]
    assert "its pipe closed" not in stand_ins.said[0], "it is killed at once"
    found = broker.metrics()
    counts = {name: count for name, count in found.items() if name.startswith("refused/")}
    assert {name for name, count in counts.items() if count} == {f"refused/{reason}"}
    assert (sum(counts.values()), found["samplers/restarts"]) == (1, 1)
    assert found["tickets/reissued"] == 2
    assert not stand_ins.is_alive(0, 0)


def test_a_lease_that_is_handed_in_twice_is_refused_and_used_once(stand_ins):
    broker = stand_ins.broker
    stand_ins.write("next", submission(Lease(1, 0, 0, RUN_ID), [group(2), group(3)]))
    twice = "lease(); submit('good-0'); submit('good-0')"
    samplers = stand_ins.start([twice, "lease(); submit('next'); wait()"])
    assert next_update(broker, 1) == [0, 1]
    assert next_update(broker, 2) == [2, 3]
    end(broker, samplers)
    assert broker.metrics()["refused/duplicate"] == 1


@pytest.mark.parametrize(
    ("programs", "max_restarts", "cause"),
    [
        (
            [["lease(); sys.exit(7)"], ["kill()"]],
            0,
            r"sampler 0 ended with exit code 7 after 0 restarts, sampler 1 ended with signal 9 .*"
            r"runtime\.max_restarts=0",
        ),
        ([["lease(); sys.exit(7)"] * 2], 9, "sampler 0 ended with exit code 7 after 1 restarts"),
        (
            [["lease(); submit('good-0'); kill()", "kill()", "kill()"]],
            9,
            "sampler 0 ended with signal 9 after 2 restarts",
        ),
        ([["lease(); send(submitting, frame('failed')); sys.exit(7)"]], 9, "^sampler 0: it says"),
    ],
)
def test_a_run_without_a_sampler_left_ends_with_their_last_exit_codes(
    stand_ins, programs, max_restarts, cause
):
    """One that dies twice without any work done is not tried again; nor one that says why."""
    samplers = stand_ins.start(*programs, max_restarts=max_restarts)
    with pytest.raises(Closed, match=cause):
        next_update(stand_ins.broker, 1)
        next_update(stand_ins.broker, 2)
    samplers.stop(PATIENCE_S)
    assert stand_ins.broker.metrics()["tickets/leased"] == 0


def test_the_others_go_on_when_one_is_lost(stand_ins):
    broker = stand_ins.broker
    programs = [["kill()"], ["lease(); submit('good-0'); wait()"]]
    samplers = stand_ins.start(*programs, max_restarts=0)
    assert stand_ins.has_said(PATIENCE_S)
    assert next_update(broker, 1) == [0, 1]
    end(broker, samplers)
    assert broker.metrics()["samplers/lost"] == 1
    assert stand_ins.said == ["sampler 0 ended with signal 9; it is lost, 1 left"]


def test_samplers_that_cannot_be_started_end_the_run_in_a_sentence():
    broker, said = open_broker(), []

    def start(holder):
        raise OSError("no memory for a process")

    samplers = Supervisor(broker, start, 2, 3, said.append)
    with pytest.raises(Closed, match=r"sampler 1 ended with no process \(no memory for a process"):
        broker.next_batch(PATIENCE_S)
    samplers.stop(PATIENCE_S)
    assert len(said) == 3, "each was tried twice, and one was lost before the other"


@pytest.mark.parametrize(("enough", "num_starts"), [(20, 4), (19, 2)])
def test_restarts_are_counted_anew_after_much_work(enough, num_starts):
    broker, started = open_broker(), []

    class Ends:
        def __init__(self, holder):
            self.holder = holder
            self.num_handed_in = enough if len(started) < 3 else 1
            started.append(holder)

        def wait(self) -> str:
            return "signal 9"

        def kill(self, why):
            return None

    samplers = Supervisor(broker, Ends, 1, 1, lambda words: None)
    with pytest.raises(Closed, match="after 1 restarts"):
        broker.next_batch(PATIENCE_S)
    samplers.stop(PATIENCE_S)
    assert len(started) == num_starts


def test_a_run_whose_deadlines_nobody_watches_ends(monkeypatch):
    broker, raised = open_broker(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda given: raised.set())
    monkeypatch.setattr(broker, "take_back_overdue", lambda: 1 // 0)
    Supervisor(broker, lambda holder: pytest.fail(str(holder)), 0, 0, pytest.fail)
    with pytest.raises(Closed, match="watching deadlines: "):
        broker.next_batch(PATIENCE_S)
    assert raised.wait(PATIENCE_S)


def test_a_sampler_that_does_not_end_with_the_run_is_killed(stand_ins):
    samplers = stand_ins.start(["lease(); submit('good-0'); stop()"])
    assert next_update(stand_ins.broker, 1) == [0, 1]
    end(stand_ins.broker, samplers)
    assert not stand_ins.is_alive(0, 0)


class Wakeups:
    """A clock that stands still and counts who looks at it."""

    num = 0

    def __call__(self) -> float:
        self.num += 1
        return 0.0


def test_a_learner_that_waits_looks_at_the_clock_only_when_something_happens():
    clock = Wakeups()
    broker = open_broker(clock=clock)
    learner = threading.Thread(target=broker.next_batch, args=(1e6,), daemon=True)
    learner.start()
    learner.join(0.2)
    num_idle = clock.num
    lease = broker.lease((0, 0))
    broker.submit(lease, GROUPS, 0.0, (0, 0))
    learner.join(PATIENCE_S)
    assert not learner.is_alive()
    assert num_idle <= 2 and clock.num <= 8


def test_samplers_far_ahead_of_the_learner_stop_at_the_bounds_and_lose_nothing():
    broker = open_broker(lag=2)
    trained = []
    for version in range(1, 7):
        while broker._may_lease():
            lease = broker.lease((0, 0))
            tickets = (2 * lease.number, 2 * lease.number + 1)
            groups = [group(ticket, lease.version) for ticket in tickets]
            broker.submit(lease, groups, 0.0, (0, 0))
            assert broker.metrics()["queue/depth"] <= 4
        batch = broker.next_batch(PATIENCE_S)
        assert all(version - 1 - each.version <= 2 for each in batch)
        trained += [each.ticket for each in batch]
        broker.complete(version, [each.ticket for each in batch])
        broker.publish(version)
    assert sorted(trained) == list(range(12))


def test_nothing_in_the_package_reads_a_clock_that_can_be_set():
    package = pathlib.Path(floors.__file__).parents[1] / floors.PACKAGE
    modules = floors.read_modules(package)
    for name in ("runtime.events", "runtime.time_of_day", "environment"):
        del modules[name]  # the time of day is what they write
    for name, module in modules.items():
        for forbidden in ("time.time(", "time.time,", "time.time)", "datetime.now", "time_ns"):
            assert forbidden not in module.source, name
        imported = {imported for _, imported in floors.imported_names(module)}
        assert "time.time" not in imported, name


def test_a_snapshot_that_is_refused_ends_the_run_with_its_name(stand_ins):
    """It would be refused again, and its version is what the tickets need."""
    words = "SnapshotRefused: v00000002.safetensors: its checksum does not fit its contents"
    stand_ins.write("failed", wire.encode({"type": "failed", "cause": words}))
    samplers = stand_ins.start(["lease(); send(submitting, frame('failed')); sys.exit(1)"])
    with pytest.raises(Closed, match="sampler 0: SnapshotRefused: v00000002"):
        stand_ins.broker.next_batch(PATIENCE_S)
    samplers.stop(PATIENCE_S)
    assert stand_ins.broker.metrics()["samplers/restarts"] == 0
