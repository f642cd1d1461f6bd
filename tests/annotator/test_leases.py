"""Leases: one annotator per image, by the store's clock, and a late save is refused."""

from __future__ import annotations

import threading

import pytest
from store_objects import image, square

from samtrain.annotator.store import Conflict, NotFound, Store, open_store


def test_an_image_is_leased_to_one_annotator(store: Store) -> None:
    a, b = store.add_images([image(), image("b")])
    lease = store.lease_next("ann", 60)
    assert lease is not None and lease.image_id == a.id and lease.expires_in == 60
    assert store.image(a.id).leased_by == "ann"
    other = store.lease_next("bob", 60)
    assert other is not None and other.image_id == b.id
    assert store.lease_next("cid", 60) is None
    for refused in (
        lambda: store.lease(a.id, "bob", 60),
        lambda: store.accept(a.id, "bob", square()),
        lambda: store.accept(a.id, "bob", square(), lease.token),
        lambda: store.heartbeat(a.id, "bob", lease.token, 60),
        lambda: store.finish(a.id, "bob"),
        lambda: store.reopen(a.id, "bob"),
    ):
        with pytest.raises(Conflict, match="ann works on image") as error:
            refused()
        assert error.value.holder == "ann" and error.value.reason == "leased"
    store.release(a.id, "wrong token")
    assert store.image(a.id).leased_by == "ann"
    store.release(a.id, lease.token)
    assert store.lease(a.id, "bob", 60).token != lease.token


def test_the_same_annotator_gets_the_same_lease_again(store: Store) -> None:
    (a,) = store.add_images([image()])
    first = store.lease(a.id, "ann", 60)
    assert store.lease(a.id, "ann", 90).token == first.token, "a reloaded page must not end what another tab does"


def test_a_late_save_is_refused_and_never_merged(store: Store, clock) -> None:
    (a,) = store.add_images([image()])
    late = store.lease(a.id, "ann", 60)
    clock.advance(61)
    with pytest.raises(Conflict, match="ended 1 s ago, and nobody has taken") as error:
        store.accept(a.id, "ann", square(), late.token)
    assert error.value.reason == "expired" and error.value.holder is None
    taken = store.lease_next("bob", 60)
    assert taken is not None and taken.image_id == a.id, "an image returns to the pool when its lease ends"
    with pytest.raises(Conflict, match="bob works on image"):
        store.accept(a.id, "ann", square(), late.token)
    store.accept(a.id, "bob", square(), taken.token)
    store.finish(a.id, "bob", taken.token)
    for late_call in (
        lambda: store.accept(a.id, "ann", square(), late.token),
        lambda: store.finish(a.id, "ann", late.token),
        lambda: store.heartbeat(a.id, "ann", late.token, 60),
    ):
        with pytest.raises(Conflict, match="bob has finished it"):
            late_call()
    assert [row.annotator for row in store.masks(a.id)] == ["bob"]


def test_a_lease_that_nobody_took_is_renewed(store: Store, clock) -> None:
    (a,) = store.add_images([image()])
    lease = store.lease(a.id, "ann", 60)
    clock.advance(50)
    assert store.heartbeat(a.id, "ann", lease.token, 60).expires == clock.now + 60
    clock.advance(200)
    assert store.image(a.id).leased_by is None
    assert store.heartbeat(a.id, "ann", lease.token, 60).token == lease.token
    store.accept(a.id, "ann", square(), lease.token)


def test_a_retry_after_the_lease_has_ended_returns_what_was_saved(store: Store, clock) -> None:
    """The answer to a save may be lost, and the page asks again: the mask is there, whatever has happened to the lease."""
    (a,) = store.add_images([image()])
    lease = store.lease(a.id, "ann", 60)
    saved = store.accept(a.id, "ann", square(request="r"), lease.token)
    clock.advance(61)
    store.lease(a.id, "bob", 60)
    assert store.accept(a.id, "ann", square(request="r"), lease.token) == saved


def test_a_script_needs_no_lease_on_a_free_image(store: Store, clock) -> None:
    (a,) = store.add_images([image()])
    store.accept(a.id, "ann", square())
    assert store.image(a.id).leased_by == "ann"
    store.finish(a.id, "ann")
    store.accept(a.id, "ann", square(1))
    clock.advance(1000)
    with pytest.raises(Conflict, match="done, by ann: take its lease first") as error:
        store.accept(a.id, "bob", square())
    assert error.value.reason == "done"
    lease = store.lease(a.id, "bob", 60)
    store.accept(a.id, "bob", square(2), lease.token)
    assert len(store.masks(a.id)) == 3


def test_finished_images_are_not_handed_out(store: Store) -> None:
    rows = store.add_images([image(key, rank=rank) for key, rank in (("a", 3), ("b", 1), ("c", 2))])
    order = []
    while (lease := store.lease_next("ann", 60)) is not None:
        order.append(lease.image_id)
        done = store.finish(lease.image_id, "ann", lease.token, "skipped" if len(order) == 2 else "done")
        assert done.leased_by is None and done.done_by == "ann"
        assert store.finish(lease.image_id, "ann", lease.token, done.state) == done, "said again after a lost answer"
    assert order == [rows[1].id, rows[2].id, rows[0].id]
    assert [each.state for each in store.images()] == ["done", "skipped", "done"]
    assert store.reopen(rows[2].id).state == "open"
    lease = store.lease_next("bob", 60)
    assert lease is not None and lease.image_id == rows[2].id


def test_next_goes_on_behind_an_image_and_then_from_the_start(store: Store) -> None:
    a, b, c = store.add_images([image("a"), image("b"), image("c", split="val", round=2)])

    def next_after(row) -> int:
        lease = store.lease_next("ann", 60, after=row.id)
        assert lease is not None
        store.release(lease.image_id, lease.token)
        return lease.image_id

    assert [next_after(row) for row in (a, b, c)] == [b.id, c.id, a.id]
    only = store.lease_next("ann", 60, split="val", round=2)
    assert only is not None and only.image_id == c.id


def test_a_second_opinion_goes_to_somebody_else_who_does_not_see_the_first(store: Store) -> None:
    a, b = store.add_images([image(opinions_wanted=2), image("b")])
    (prefilled,) = store.add_masks(a.id, "model", [square(locked=True, origin="prefilled", source="automatic")])
    first = store.accept(a.id, "ann", square(1))
    store.finish(a.id, "ann")
    assert store.image(a.id).state == "done" and store.image(a.id).opinions_done == 1
    own = store.lease_next("ann", 60)
    assert own is not None and own.image_id == b.id, "nobody gives a second opinion on their own masks"
    lease = store.lease_next("bob", 60)
    assert lease is not None and lease.image_id == a.id and lease.opinion == 1
    assert store.masks(a.id, annotator="bob") == [prefilled]
    second = store.accept(a.id, "bob", square(2), lease.token)
    assert store.masks(a.id, annotator="bob") == [prefilled, second]
    assert store.masks(a.id, annotator="ann") == [prefilled, first] == store.masks(a.id), "the first opinion counts"
    assert store.masks(a.id, opinion=1) == [second]
    assert store.mask(first.id, annotator="ann") == first and store.mask(prefilled.id, annotator="bob") == prefilled
    for hidden, annotator in ((first, "bob"), (second, "ann")):
        with pytest.raises(NotFound):
            store.mask(hidden.id, annotator=annotator)
    with pytest.raises(Conflict, match="another annotator's opinion"):
        store.change(first.id, "bob", {"label": "x"}, lease.token)
    done = store.finish(a.id, "bob", lease.token)
    assert (done.state, done.done_by, done.opinions_done) == ("done", "ann", 2)
    assert store.lease_next("cid", 60) is None or store.image(a.id).leased_by is None


def test_a_skipped_second_opinion_is_not_asked_for_again(store: Store) -> None:
    (a,) = store.add_images([image(opinions_wanted=2)])
    store.finish(a.id, "ann")
    lease = store.lease_next("bob", 60)
    assert lease is not None
    assert store.finish(a.id, "bob", lease.token, "skipped").state == "done"
    assert store.lease_next("bob", 60) is None and store.lease_next("cid", 60) is None
    assert store.statistics()["agreement"]["images"] == 0


def test_who_gave_the_second_opinion_does_not_get_the_reopened_first(store: Store) -> None:
    (a,) = store.add_images([image(opinions_wanted=2)])
    store.finish(a.id, "ann")
    store.finish(a.id, "bob")
    store.reopen(a.id, "ann")
    assert store.lease_next("bob", 60) is None
    lease = store.lease_next("cid", 60)
    assert lease is not None and lease.opinion == 0
    store.release(a.id, lease.token)


def test_many_threads_never_get_the_same_image(store_url: str) -> None:
    with open_store(store_url) as store:
        store.add_images([image(f"{i:02d}") for i in range(24)])
        taken: list[tuple[str, int]] = []

        def work(name: str) -> None:
            while (lease := store.lease_next(name, 600)) is not None:
                taken.append((name, lease.image_id))
                store.accept(lease.image_id, name, square(), lease.token)
                store.finish(lease.image_id, name, lease.token)

        threads = [threading.Thread(target=work, args=(f"person {i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == len({number for _, number in taken}) == 24
        assert store.statistics()["masks"]["done"] == 24


def test_no_mask_comes_after_a_round_was_closed(store_url: str) -> None:
    """Four people save while the engine closes the round: what it reads then is what stays."""
    with open_store(store_url) as store:
        rows = store.add_images([image(f"{i}", round=1) for i in range(4)])
        store.open_round(1, 1)
        refused = []

        def work(row) -> None:
            try:
                for number in range(500):
                    store.accept(row.id, f"person {row.id}", square(request=str(number)))
            except Conflict as error:
                refused.append(error.reason)

        threads = [threading.Thread(target=work, args=(row,)) for row in rows]
        for thread in threads:
            thread.start()
        while store.image(rows[0].id).masks < 2:
            pass
        store.close_round(1)
        at_close = [store.masks(row.id) for row in rows]
        for thread in threads:
            thread.join()
        assert refused == ["closed"] * 4
        assert [store.masks(row.id) for row in rows] == at_close


def test_two_servers_may_add_the_same_images(store_url: str) -> None:
    with open_store(store_url) as one, open_store(store_url) as other:
        new = [image(f"{i:03d}") for i in range(100)]
        threads = [threading.Thread(target=store.add_images, args=(new,)) for store in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.count_images() == 100


def test_a_lease_lasts_a_sensible_time(store: Store) -> None:
    (a,) = store.add_images([image()])
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a lease lasts"):
            store.lease(a.id, "ann", seconds)
