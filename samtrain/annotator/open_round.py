"""One round that people annotate: its images come into the store, people work, it closes, and their masks are collected."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from samtrain.annotator.collect import EARLIER, PREFILLED, annotation_of, earlier_masks, prefilled_masks
from samtrain.annotator.config import wants_second_opinion
from samtrain.annotator.goals import Goals
from samtrain.annotator.store import ImageRow, NewImage, NotFound, Store, Work
from samtrain.data_engine.interface import UNTOUCHED, ImageAnnotation, ImageOfRound, RoundToAnnotate

log = logging.getLogger(__name__)

LOG_CHANGES, LOG_WAITING = 60.0, 900.0  # seconds between two lines of the log while people work, and while nobody does
STAGES = {"held_back": 0, "assisted_manual": 1, "semi_automatic": 2}
MESSAGES = (
    "These images measure the models: take more time, mask every object, and correct each mask until its edge is right.",
    "",
    "Masks in their own colour are there already: reject those that are wrong, and add what is missing.",
)
NOTHING = ImageAnnotation([], [], UNTOUCHED, 0, prefilled=[])


class OpenRound:
    """A round of people.

    goals:    what closes it
    opinions: share of the images that a second person annotates, too
    poll:     seconds between two looks at the store
    """

    def __init__(self, store: Store, work: RoundToAnnotate, goals: Goals, *, opinions: float, poll: float) -> None:
        self.store, self.work, self.opinions, self.poll = store, work, opinions, poll
        self.stage = STAGES.get(work.stage, 1)
        # all images that measure the models are annotated, whatever the goals of the rounds are
        self.goals = (goals if self.stage else Goals()).of(work.num_images)
        self._shown: tuple[int, int] | None = None  # images and masks in the last line of the log
        self._logged = self._looked = 0.0

    def annotations(self) -> Iterator[tuple[int, ImageAnnotation | None]]:
        """Yields the position and the annotation of each image when the round is over; None for one that cannot be read.

        A round that an earlier process has closed is only collected.
        """
        unread = set()
        if not self._is_closed():
            for position in self._run():
                unread.add(position)
                yield position, None
        rows = {row.name: row for row in self.store.images(round=self.work.number)}
        for each in self.work.images:
            if each.position not in unread:
                row = rows.get(each.key)
                yield each.position, NOTHING if row is None else annotation_of(self.store, row)

    # ---- until it is closed

    def _run(self) -> Iterator[int]:
        """Opens the round, adds its images one by one, and closes it; yields the positions of images that cannot be read."""
        number = self.work.number
        self.store.open_round(number, self.stage, self.goals.to_plain())
        log.info("Round %d is open for people. It closes when %s.", number, self.goals.describe())
        self._tell(0, 0)
        known = {row.name: row for row in self.store.images(round=number)}
        for each in self.work.images:
            if self._is_over():
                break
            row = known.get(each.key)
            if (row is None or row.state == "closed") and not self._add(each):
                yield each.position
        while not self._is_over():
            time.sleep(self.poll)
        self.store.close_round(number)
        log.info("Round %d is closed.", number)

    def _add(self, image: ImageOfRound) -> bool:
        """Adds an image with the masks that it has already; returns whether it can be read."""
        content = image.read()
        if content is None:
            return False
        H, W = content.image.shape[:2]
        number = self.work.number
        second = image.split == "train" and wants_second_opinion(image.key, self.opinions)
        new = NewImage(
            key=self._key(image.key),
            name=image.key,
            source=f"{image.place[0]}#{image.place[1]}",
            width=W,
            height=H,
            split=image.split,
            round=number,
            rank=float(image.position),
            state="closed",  # nobody gets it before its masks are there
            opinions_wanted=2 if second else 1,
        )
        row = self.store.add_images([new])[0]
        self.store.add_masks(row.id, EARLIER, earlier_masks(image.earlier))
        self.store.add_masks(row.id, PREFILLED, prefilled_masks(content.prefilled, self.work.digest))
        self.store.update_images([row.id], state="open")
        return True

    def _key(self, key: str) -> str:
        """Returns a key of the store for an image, which may be in the store already, for an earlier round."""
        try:
            known = self.store.image_of(key)
        except NotFound:
            return key
        return key if known.round == self.work.number else f"{key}__round{self.work.number}"

    # ---- how far it is

    def _is_closed(self) -> bool:
        return any(each.number == self.work.number and each.state == "closed" for each in self.store.rounds())

    def _is_over(self) -> bool:
        """Returns whether the round is closed by somebody or has reached a goal; logs how far it is."""
        now = time.monotonic()
        if now - self._looked < self.poll:
            return False
        self._looked = now
        rows = self.store.images(round=self.work.number)
        masks = self.store.count_masks(self.work.number)
        done = [row for row in rows if row.state in ("done", "skipped")]
        own = next(each for each in self.store.rounds() if each.number == self.work.number)
        self._log(len(done), masks)
        if own.state == "closed":
            return True
        hours = (time.time() - own.opened_at) / 3600
        reached = self.goals.reached(images=len(done), masks=masks, hours=hours)
        return reached and self._teaches(rows, masks) and not self._waits_for_opinions(done)

    def _teaches(self, rows: list[ImageRow], masks: int) -> bool:
        """Returns whether there is a mask to learn from, drawn or prefilled; a round without one stays open."""
        return masks > 0 or any(row.masks for row in rows if row.state in ("done", "skipped"))

    def _waits_for_opinions(self, done: list[ImageRow]) -> bool:
        """Returns whether all images are to be finished and some still need their second opinion."""
        all_images = self.goals.images == self.work.num_images and len(done) == self.work.num_images
        return all_images and any(row.opinions_done < row.opinions_wanted for row in done)

    def _log(self, images: int, masks: int) -> None:
        """Logs how far the round is, and tells the pages."""
        changed = (images, masks) != self._shown
        if changed:
            self._tell(images, masks)
        if time.monotonic() - self._logged < (LOG_CHANGES if changed else LOG_WAITING):
            return
        self._logged, self._shown = time.monotonic(), (images, masks)
        words = f"{images} of {self.goals.images} images are finished, {masks} masks are accepted"
        log.info("Round %d waits for people: %s. It closes when %s.", self.work.number, words, self.goals.describe())

    def _tell(self, images: int, masks: int) -> None:
        work = Work(
            kind="annotate",
            round=self.work.number,
            stage=self.stage,
            message=MESSAGES[self.stage],
            goals=self.goals.to_plain(),
            progress={"images": images, "masks": masks},
        )
        if self.store.work() != work:
            self.store.set_work(work)


def close_now(store: Store) -> int:
    """Closes the round that is open now, before it reaches its goals, and returns its number; the engine then trains.

    Raises ValueError if no round is open, or if nobody has accepted a mask in it: there would be nothing to learn from.
    """
    number = next((each.number for each in store.rounds() if each.state == "open"), None)
    if number is None:
        raise ValueError("no round is open (annotate.close_round): wait until the engine opens the next one")
    if not store.count_masks(number):
        raise ValueError(f"nobody has accepted a mask in round {number} yet (annotate.close_round): nothing could be learned")
    store.close_round(number)
    return number
