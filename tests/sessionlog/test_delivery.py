"""The delivery machine: each line of the error tables, D1 to D6, backoff, splitting. No clock, no thread, no sleep."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import DeliveryPolicy
from natcore.sessionlog.delivery import (
    Attempt,
    Delivered,
    Destination,
    Progress,
    Refused,
    Target,
    Wait,
    backoff,
    decide,
    destination_of,
    settle,
)

POLICY = DeliveryPolicy(unavailable=300.0, backoff_min=0.5, backoff_max=60.0)
UNAVAILABLE = ("ProjectNotExist", "LogStoreNotExist", "ProjectForbidden", "Unauthorized")


def refused(code="ServerBusy", action="backoff", rows=100, retry_after=None):
    return Refused(rows, code, f"{code} it says", action, retry_after)


def after(answer, target=None, progress=None, *, tested=False, now=1000.0, jitter=1.0):
    return settle(
        target or Target(), progress or Progress(4096), answer,
        tested=tested, now=now, policy=POLICY, largest=4096, jitter=jitter,
    )  # fmt: skip


@pytest.mark.parametrize("code", UNAVAILABLE)
def test_D1_no_attempt_for_300_s_after_a_cause_of_unavailability(code):
    target, progress, disposal = after(refused(code, "unavailable"), now=1000.0)
    assert disposal == "keep"
    assert (progress.state, progress.code, progress.cause) == ("Failed", "UnavaliableTarget", code)
    assert decide(target, progress, True, 1299.999) == Wait(1300.0)
    assert decide(target, progress, True, 1300.0) == Attempt(4096, test=True)


def test_D2_one_test_delivery_only_while_it_is_on_its_way():
    destination = Destination()
    destination.settle(Progress(10), refused("Unauthorized", "unavailable"), tested=False, now=0.0,
                       policy=POLICY, largest=10, jitter=0.0)  # fmt: skip
    assert destination.decide(Progress(10), True, 300.0) == Attempt(10, test=True)
    assert destination.decide(Progress(10), True, 300.0) == Wait(None)
    assert destination.decide(Progress(10), True, 9999.0) == Wait(None)


@pytest.mark.parametrize("code, action", [("ProjectNotExist", "unavailable"), ("ReadTimeout", "backoff"),
                                          ("PostBodyTooLarge", "split"), ("PostBodyInvalid", "reject")])  # fmt: skip
def test_D3_a_failed_test_whatever_its_code_waits_another_300_s_from_the_answer(code, action):
    target = Target(1300.0, "Unauthorized", "", testing=True)
    target, progress, _ = after(refused(code, action), target, tested=True, now=1330.0)
    assert target == Target(1630.0, code, f"{code} it says")
    assert (progress.state, progress.code, progress.cause) == ("Failed", "UnavaliableTarget", code)
    assert decide(target, progress, True, 1629.9) == Wait(1630.0)
    assert decide(target, progress, True, 1630.0).test


def test_D4_a_good_test_resumes_normal_delivery():
    target, progress, disposal = after(Delivered(50), Target(1300.0, "Unauthorized", "", True), tested=True, now=1310.0)
    assert (target.available, progress.state, progress.code, disposal) == (True, "Success", "", "acknowledge")
    assert decide(target, progress, True, 1310.0) == Attempt(4096, test=False)


def test_D5_nothing_waits_no_probe():
    target = Target(1300.0, "Unauthorized", "")
    assert decide(target, Progress(10), False, 5000.0) == Wait(None)
    assert decide(target, Progress(10), False, 5000.0, opening=True) == Wait(None)


def test_D6_logs_of_one_destination_share_its_state_and_its_test():
    one, two = destination_of(("sls", "p", "l")), destination_of(("sls", "p", "l"))
    other = destination_of(("sls", "p", "m"))
    assert one is two and one is not other
    woken = []
    two.watch(lambda: woken.append(two.target.available))
    one.settle(Progress(1), refused("LogStoreNotExist", "unavailable"), tested=False, now=0.0, policy=POLICY,
               largest=1, jitter=0)  # fmt: skip
    assert two.decide(Progress(1), True, 299.0) == Wait(300.0)
    assert other.decide(Progress(1), True, 0.0) == Attempt(1, test=False)
    assert two.decide(Progress(1), True, 301.0).test
    two.settle(Progress(1), Delivered(1), tested=True, now=302.0, policy=POLICY, largest=1, jitter=0)
    assert one.decide(Progress(1), True, 302.0) == Attempt(1, test=False)
    assert woken == [False, True]


def test_an_unnamed_destination_is_not_shared():
    assert destination_of(None) is not destination_of(None)


def test_a_late_answer_of_another_log_ends_no_test():
    target = Target(1300.0, "Unauthorized", "", testing=True)
    assert after(Delivered(5), target)[0] == target
    late = after(refused("Unauthorized", "unavailable"), target, now=1301.0)[0]
    assert late.testing and late.until == 1601.0


@pytest.mark.parametrize(
    "code",
    ["InvalidAccessKeyId", "WriteQuotaExceed", "ShardWriteQuotaExceed", "SignatureNotMatch", "RequestTimeExpired",
     "InternalServerError", "ServerBusy", "LogRequestError", "TimeoutError"],
)  # fmt: skip
def test_codes_that_back_off_keep_the_rows_and_the_destination(code):
    target, progress, disposal = after(refused(code), now=1000.0, jitter=1.0)
    assert target.available and disposal == "keep"
    assert (progress.state, progress.code) == ("Failed", code)
    assert decide(target, progress, True, 1000.4) == Wait(1000.5)
    assert decide(target, progress, True, 1000.5) == Attempt(4096, test=False)


def test_the_destination_says_when_to_come_again():
    _, progress, _ = after(refused(retry_after=17.0), now=1000.0)
    assert progress.not_before == 1017.0


def test_backoff_doubles_to_its_cap_and_draws_the_upper_half():
    full = [backoff(POLICY, failures, 1.0) for failures in range(10)]
    assert full == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff(POLICY, 3, 0.0) == 2.0
    assert backoff(POLICY, 10**6, 1.0) == 60.0
    assert backoff(DeliveryPolicy(backoff_min=0, backoff_max=0), 0, 0.5) > 0


def test_a_batch_too_large_is_halved_until_one_row_is_left_which_is_set_aside():
    target, progress, sizes = Target(), Progress(4096), []
    rows = 4096
    while True:
        sizes.append(rows)
        target, progress, disposal = after(refused("PostBodyTooLarge", "split", rows), target, progress)
        assert target.available and progress.not_before < 1000
        if disposal == "set-aside":
            break
        rows = decide(target, progress, True, 1000.0).limit
    assert sizes == [4096 >> shift for shift in range(13)]
    assert progress.state == "Failed" and progress.code == "PostBodyTooLarge"


def test_after_a_split_successes_grow_the_batch_again():
    _, progress, _ = after(refused("PostBodyTooLarge", "split", 4096))
    for limit in (4096, 4096):
        _, progress, _ = after(Delivered(2048), progress=progress)
        assert progress.limit == limit


@pytest.mark.parametrize("code", ["PostBodyInvalid", "InvalidTimestamp", "InvalidEncoding", "InvalidKey"])
def test_rows_refused_as_bad_are_set_aside_and_delivery_goes_on(code):
    target, progress, disposal = after(refused(code, "reject"))
    assert disposal == "set-aside" and target.available
    assert (progress.state, progress.code) == ("Failed", code)
    assert isinstance(decide(target, progress, True, 1000.0), Attempt)


ANSWERS = st.one_of(
    st.builds(lambda: "ok"),
    st.sampled_from([(c, "unavailable") for c in UNAVAILABLE]),
    st.sampled_from([("ServerBusy", "backoff"), ("PostBodyTooLarge", "split"), ("PostBodyInvalid", "reject")]),
)


@given(st.lists(st.tuples(ANSWERS, st.floats(0, 400)), max_size=60), st.integers(0, 2**32))
def test_while_unavailable_there_is_at_most_one_try_in_300_s(script, seed):
    """Whatever the answers: tries that follow one that made the destination unavailable are 300 s apart."""
    chance, target, progress, now, last_bad = random.Random(seed), Target(), Progress(64), 0.0, None
    for answer, pause in script:
        now += pause
        action = decide(target, progress, True, now)
        if isinstance(action, Wait):
            assert action.until is None or action.until > now
            continue
        assert action.limit >= 1
        if last_bad is not None:
            assert now >= last_bad + 300.0 and action.test
        verdict = Delivered(action.limit) if answer == "ok" else refused(*answer, rows=action.limit)
        target, progress, _ = settle(target, progress, verdict, tested=action.test, now=now, policy=POLICY,
                                     largest=64, jitter=chance.random())  # fmt: skip
        last_bad = None if target.available else now
