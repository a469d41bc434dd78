"""What becomes of jobs that are cancelled, that break limits, or that nobody can train."""

from __future__ import annotations

import signal

from esper.log.connection import Connection
from esper.log.endpoint import Endpoint
from esper.log.queue import STREAM
from esper_events.events import RunEnded
from esper_events.reader import LogReader
from esper_events.registry import JobCancelled, JobParked, LeaseGranted
from support.command import SMALL
from support.daemons import ENDLESS, Site
from support.log_runs import UserServer

HELD = LeaseGranted | JobParked
UNREADABLE = "[run]\nsteps = 0\n"


def cancel(there: Site, job: str) -> None:
    event = JobCancelled(time=1.0, job=job, reason="not wanted")
    there.link.registry.update(lambda _: [event])


def lose_queue(server: UserServer) -> None:
    """Delete it, with all its messages and the memory of who has which."""
    operator = Connection(Endpoint(server.url))
    operator.call(lambda: operator.js.delete_stream(STREAM))
    operator.close()


def test_two_at_a_time_and_each_ends_as_it_must(here: Site, server: UserServer) -> None:
    here.submit("never", ENDLESS)
    cancel(here, "never")
    assert here.job("never").state == "cancelled", "at once, while it waits"
    here.submit("cancelled", ENDLESS)
    here.submit("overdue", ENDLESS, seconds=4.0)
    here.start("--jobs", "2")
    here.wait("overdue", lambda job: job.epoch == 0)
    here.submit("third", UNREADABLE)
    here.wait_for_step("cancelled", 0)

    lose_queue(server)
    here.link.lost()
    here.wait_until(lambda: "cancelled" in here.link.queue.jobs())

    here.wait("third", lambda job: job.state == "parked")
    overdue = here.job("overdue")
    assert (overdue.state, overdue.reason) == ("parked", "it ran for longer than its limit of 4 s")
    told = [r.event for r in here.link.registry.records() if isinstance(r.event, HELD)]
    order = [(type(event).__name__, event.job) for event in told]
    assert [job for _, job in order[:2]] == ["cancelled", "overdue"], "two at once"
    assert order[2:4] == [("JobParked", "overdue"), ("LeaseGranted", "third")], "and no more"

    cancel(here, "cancelled")
    cancelled = here.wait("cancelled", lambda job: not job.holder)
    assert (cancelled.state, cancelled.outcome) == ("cancelled", "interrupted")
    last = list(LogReader(here.run_dir("cancelled")).records())[-1].event
    assert isinstance(last, RunEnded)
    assert last.outcome == "interrupted"
    assert len(here.grants("cancelled")) == 1, "handed out twice, trained once"
    assert here.grants("never") == []


def test_a_job_is_let_go_of_when_its_lease_cannot_be_kept(here: Site, server: UserServer) -> None:
    here.submit("job", ENDLESS)
    here.start()
    here.wait_for_step("job", 0)
    first = here.trainers()
    server.signal(signal.SIGSTOP)
    here.wait_until(lambda: not here.trainers())
    server.signal(signal.SIGCONT)
    here.link.lost()
    job = here.wait("job", lambda job: job.epoch == 1)
    assert (job.state, job.expired) == ("leased", 1), "taken again, by whoever is first"
    here.wait_until(lambda: here.trainers() not in ([], first))
    cancel(here, "job")
    assert here.wait("job", lambda job: not job.holder).state == "cancelled"


def test_what_cannot_be_trained_is_parked(here: Site) -> None:
    here.submit("unreadable", UNREADABLE)
    here.submit("absent", SMALL.replace("hidden = [4]", 'factory = "no_such_module:model"'))
    here.submit("hungry", SMALL.replace("[4]", "[9000, 9000]"), memory=400 << 20)
    here.submit("starved", SMALL, memory=1 << 20)
    here.start("--jobs", "4")
    for job, words in (
        ("unreadable", "run.steps: got 0"),
        ("absent", "importing 'no_such_module' failed"),
        ("hungry", "more memory than it may use"),
        ("starved", "MemoryError (3 times without getting on)"),
    ):
        parked = here.wait(job, lambda job: job.state == "parked")
        assert words in parked.reason
    here.wait_until(lambda: not here.link.queue.jobs())
    assert here.trainers() == []
