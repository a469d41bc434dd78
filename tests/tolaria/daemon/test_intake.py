"""Whose a job is when the queue hands it out: what a daemon takes, and what it leaves."""

from __future__ import annotations

from esper.log.queue import Delivery
from esper.tolaria.daemon.holding import Holding
from esper.tolaria.daemon.intake import Intake, Settings
from esper.tolaria.daemon.rulings import claim, if_held
from esper_events.registry import JobCancelled, JobReleased, LeaseGranted
from support.daemons import Site
from support.log_runs import wait_until

OTHER = "other-machine"


def intake(there: Site, **settings: int) -> Intake:
    chosen = Settings(accept_unproved=True, **settings)
    return Intake(there.workspace, there.nats, there.link, chosen, lambda _: None)


def delivered(there: Site, attempt: int = 1) -> Delivery:
    """The only job in the queue, handed out so many times."""
    found: list[Delivery] = []

    def take() -> bool:
        delivery = there.link.queue.take(0.5)
        if delivery is not None and delivery.attempt < attempt:
            there.link.queue.put_back(delivery)
        elif delivery is not None:
            found.append(delivery)
        return bool(found)

    wait_until(take, 30)
    return found[0]


def granted(there: Site, job: str, epoch: int = 0) -> None:
    grant = LeaseGranted(time=1.0, job=job, epoch=epoch, holder=OTHER, log=job)
    assert there.link.update(lambda _: [grant])


def weighed(there: Site, attempt: int) -> Holding | None:
    return intake(there).weigh(delivered(there, attempt))


def test_a_job_that_waits_is_taken_once(here: Site) -> None:
    here.submit("job", "", memory=500, seconds=60.0)
    seen = here.job("job")
    taken = intake(here, memory=300).weigh(delivered(here))
    assert taken is not None
    assert (taken.order.epoch, taken.order.log, taken.order.memory) == (0, "job", 300)
    assert here.job("job").holder == intake(here).holder
    assert here.link.update(claim(here.link.reading, seen, "job", OTHER)) == [], "it was seen late"


def test_a_fresh_message_ends_no_lease_and_one_handed_out_again_does(here: Site) -> None:
    here.submit("job", "")
    granted(here, "job")
    assert weighed(here, 1) is None
    assert here.job("job").holder == OTHER
    taken = weighed(here, 2)
    assert taken is not None
    assert taken.order.why == f"lease 0 of {OTHER} expired"
    job = here.job("job")
    assert (job.state, job.epoch, job.expired) == ("leased", 1, 1)
    late = JobReleased(time=1.0, job="job", epoch=0, reason="")
    assert here.link.update(if_held(here.link.reading, "job", 0, late)) == []


def test_a_job_whose_leases_end_too_often_is_parked(here: Site) -> None:
    here.submit("job", "", attempts=2)
    granted(here, "job")
    assert weighed(here, 2) is not None
    assert weighed(here, 3) is None
    job = here.job("job")
    assert job.state == "parked"
    assert job.reason == "2 of its leases have expired, at most 2 were wanted"
    wait_until(lambda: not here.link.queue.jobs(), 30)


def test_a_run_whose_truth_is_a_journal_is_left_to_who_has_it(here: Site) -> None:
    here.submit("job", "", ack="journal")
    granted(here, "job")
    assert weighed(here, 2) is None
    assert here.job("job").holder == OTHER, "its lease is not ended by who cannot go on"
    here.run_dir("job").mkdir(parents=True)
    taken = weighed(here, 3)
    assert taken is not None
    assert taken.order.epoch == 1


def test_a_message_of_a_job_that_is_over_leaves_the_queue(here: Site) -> None:
    here.submit("job", "")
    here.link.update(lambda _: [JobCancelled(time=1.0, job="job", reason="")])
    here.link.queue.publish("unheard-of")
    assert intake(here).weigh(delivered(here)) is None
    assert intake(here).weigh(delivered(here)) is None
    wait_until(lambda: not here.link.queue.jobs(), 30)
