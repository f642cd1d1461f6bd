"""The page's modules on their own: run lengths, masks, the view, the clock, the state machine, keys. No server is needed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from browser_site import STATIC
from pycocotools import mask as coco

pytestmark = pytest.mark.browser

MODULES = ("rle", "masks", "view", "clock", "state", "keys", "draft", "draw", "hover", "api", "styles")
IMPORTS = "".join(f'const {name} = await import("/static/{name}.js");' for name in MODULES)


def run(page: Any, body: str, argument: Any = None) -> Any:
    """Returns what the body of an async function gives; the modules are there by their names, the argument is `given`."""
    return page.evaluate(f"async (given) => {{ {IMPORTS} {body} }}", argument)


def to_rle(mask: np.ndarray) -> dict[str, Any]:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask of a few discs and rectangles and some loose pixels, which touches the borders now and then."""
    rows, columns = np.mgrid[:height, :width]
    mask = rng.random((height, width)) < rng.choice([0, 0.01, 0.5])
    for _ in range(rng.integers(0, 4)):
        y, x, r = rng.integers(height), rng.integers(width), rng.integers(1, max(height, width))
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= r**2 / 4
    top, left = rng.integers(height), rng.integers(width)
    mask[top : top + rng.integers(height), left : left + rng.integers(width)] = rng.random() < 0.5
    return mask


@pytest.fixture(scope="module")
def samples() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [blobs(rng, *rng.integers(1, 60, 2)) for _ in range(60)]
    return [*masks, np.zeros((5, 7), bool), np.ones((5, 7), bool), np.eye(9, dtype=bool), np.ones((1, 1), bool)]


# ---- run lengths and masks


def test_run_lengths_are_those_of_pycocotools(modules: Any, samples: list[np.ndarray]) -> None:
    rles = [to_rle(mask) for mask in samples]
    body = """return given.map((each) => {
        const mask = rle.decode(each);
        const { height, width, left, columns } = mask;
        const isKept = rle.encode(mask) === each;  // what was not changed is sent back as it came
        return [rle.encode({height, width, left, columns}), masks.area(mask), masks.bounds(mask), isKept];
    });"""
    for mask, sent, (back, area, box, is_kept) in zip(samples, rles, run(modules, body, rles), strict=True):
        assert back == sent and is_kept
        assert area == mask.sum()
        rows, columns = np.nonzero(mask)
        expected = (
            {"left": columns.min(), "top": rows.min(), "right": columns.max() + 1, "bottom": rows.max() + 1}
            if mask.any()
            else None
        )
        assert box == expected


def test_large_and_uncompressed_run_lengths(modules: Any) -> None:
    """10,000 x 10,000 pixels: the mask takes as many spans as it has columns, and no bitmap is made."""
    body = """const full = rle.decode({size: [10000, 10000], counts: [0, 1e8]});
        return [full.columns.length, masks.area(full), rle.encode(full), full.columns.every((each) => each.length === 2)];"""
    columns, area, back, flat = run(modules, body)
    assert (columns, area, flat) == (10_000, 10**8, True)
    assert coco.area({"size": back["size"], "counts": back["counts"].encode()}) == 10**8


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 4], "counts": [3, 2]}, "5 pixels, but its image has 4 x 4"),
        ({"size": [4, 4], "counts": "o"}, "middle of a number"),
    ],
)
def test_broken_run_lengths_are_refused(modules: Any, segmentation: dict[str, Any], message: str) -> None:
    assert message in run(modules, "try { rle.decode(given).columns; } catch (error) { return error.message; }", segmentation)


def test_union_difference_and_membership(modules: Any) -> None:
    rng = np.random.default_rng(1)
    pairs = [(blobs(rng, 31, 23), blobs(rng, 31, 23)) for _ in range(40)]
    body = """return given.map(([a, b]) => {
        [a, b] = [rle.decode(a), rle.decode(b)];
        const inside = [];
        for (let y = 0; y < 31; y++) for (let x = 0; x < 23; x++) inside.push(masks.contains(a, x + 0.5, y + 0.5));
        const same = [masks.equal(a, b), masks.equal(a, masks.union(a, a))];
        return [rle.encode(masks.union(a, b)), rle.encode(masks.minus(a, b)), inside, ...same];
    });"""
    answers = run(modules, body, [[to_rle(one), to_rle(other)] for one, other in pairs])
    for (one, other), (union, minus, inside, equal, itself) in zip(pairs, answers, strict=True):
        assert union == to_rle(one | other)
        assert minus == to_rle(one & ~other)
        assert (np.array(inside).reshape(31, 23) == one).all()
        assert equal == bool((one == other).all())
        assert itself


def test_a_stroke_covers_the_pixels_near_its_line(modules: Any) -> None:
    """Each pixel with a centre at most the radius from the polyline, and no other; parts outside the image are cut."""
    rng = np.random.default_rng(2)
    strokes = [(rng.uniform(-5, 45, (rng.integers(1, 5), 2)).tolist(), float(rng.uniform(0.6, 9))) for _ in range(40)]
    strokes += [([[10, 10], [10, 30]], 3.0), ([[5, 8], [33, 8]], 2.0), ([[7.5, 7.5]], 0.5)]
    body = "return given.map(([points, radius]) => rle.encode(masks.strokeMask(40, 36, points, radius)));"
    rows, columns = np.mgrid[:40, :36] + 0.5
    for (points, radius), answer in zip(strokes, run(modules, body, strokes), strict=True):
        distance = np.full((40, 36), np.inf)
        for (x0, y0), (x1, y1) in zip([points[0], *points], points, strict=False):
            dx, dy = x1 - x0, y1 - y0
            t = np.clip(((columns - x0) * dx + (rows - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
            distance = np.minimum(distance, np.hypot(columns - x0 - t * dx, rows - y0 - t * dy))
        clear = np.abs(distance - radius) > 1e-9  # rounding decides on the line itself
        painted = coco.decode({"size": answer["size"], "counts": answer["counts"].encode()}).astype(bool)
        assert (painted == (distance <= radius))[clear].all()


def test_operations_share_what_they_do_not_touch(modules: Any) -> None:
    """A stroke on a mask as wide as a huge image copies only the columns under the stroke, and never changes the mask."""
    body = """const full = rle.decode({size: [10000, 10000], counts: [0, 1e8]});
        const cut = state.paint(full, "eraser", 20, [[5000, 5000], [5010, 5000]]);
        const shared = cut.columns.filter((each, i) => each === full.columns[i]).length;
        return [shared, masks.area(full), masks.area(cut) < 1e8];"""
    shared, area, smaller = run(modules, body)
    assert shared >= 10_000 - 60
    assert (area, smaller) == (10**8, True)


# ---- what is painted


def test_masks_are_painted_where_their_pixels_are(modules: Any) -> None:
    """At every zoom, a pixel of the canvas belongs to the mask if its centre does: masks and image cannot shift."""
    rng = np.random.default_rng(3)
    mask = blobs(rng, 50, 40) | np.eye(50, 40, dtype=bool)
    views = [
        *[{"scale": 1, "x": 0, "y": 0}, {"scale": 3, "x": -20.5, "y": 7.25}],
        *[{"scale": 0.37, "x": 11, "y": 5}, {"scale": 8, "x": -200, "y": -160}],
    ]
    body = """return given.views.map((each) => {
        const size = {width: 90, height: 80};
        const raster = draw.rasterise(rle.decode(given.mask), each, size);
        const seen = [];
        for (let y = 0; y < 80; y++) for (let x = 0; x < 90; x++) {
            const [i, k] = [x - raster.left, y - raster.top];
            seen.push(i >= 0 && k >= 0 && i < raster.width && k < raster.height && raster.inside[k * raster.width + i]);
        }
        return seen;
    });"""
    rows, columns = np.mgrid[:80, :90] + 0.5
    for view, seen in zip(views, run(modules, body, {"mask": to_rle(mask), "views": views}), strict=True):
        x = np.floor((columns - view["x"]) / view["scale"]).astype(int)
        y = np.floor((rows - view["y"]) / view["scale"]).astype(int)
        inside = (x >= 0) & (y >= 0) & (x < 40) & (y < 50)
        expected = inside & mask[np.clip(y, 0, 49), np.clip(x, 0, 39)]
        assert (np.array(seen, bool).reshape(80, 90) == expected).all()


@pytest.mark.parametrize("contrast", ["fill", "outline", "colours"])
def test_each_outline_holds_a_bright_and_a_dark_line(modules: Any, contrast: str) -> None:
    """So that a mask is seen on an image of any colour, the mask's own included."""
    body = """const size = {width: 60, height: 60};
        const pixels = new Uint32Array(3600);
        const mask = masks.strokeMask(60, 60, [[30, 30]], 15);
        draw.paintMask(pixels, size, mask, {scale: 1, x: 0, y: 0}, given === "current" ? styles.styleOfCurrent("outline", false)
            : styles.styleOfStored({number: 0, state: "accepted"}, given, false));
        return [...pixels].map((each) => [each & 255, (each >> 8) & 255, (each >> 16) & 255, each >>> 24]);"""
    for style in (contrast, "current"):
        pixels = np.array(run(modules, body, style)).reshape(60, 60, 4)
        row = pixels[30]
        lines = row[row[:, 3] > 150][:, :3].sum(axis=1)
        assert lines.max() - lines.min() > 200
        assert row[:10, 3].max() == 0


# ---- the view


def test_zooming_keeps_the_pixel_under_the_pointer(modules: Any) -> None:
    body = """const image = {width: 5000, height: 3000}, size = {width: 900, height: 600};
        let at = view.fit(image, size);
        const before = view.toImage(at, 400, 300);
        for (const factor of [1.5, 3, 2, 0.7, 4]) at = view.zoomAt(at, factor, 400, 300, image, size);
        const back = view.toCanvas(at, ...view.toImage(at, 123, 45));
        return [before, view.toImage(at, 400, 300), back, at.scale];"""
    before, after, back, scale = run(modules, body)
    np.testing.assert_allclose(after, before)
    np.testing.assert_allclose(back, [123, 45])
    assert scale > 1


def test_an_image_cannot_be_lost_by_panning(modules: Any) -> None:
    body = """const image = {width: 500, height: 300}, size = {width: 900, height: 600};
        const at = view.pan(view.fit(image, size), given[0], given[1], image, size);
        return [at.x, at.y, at.x + 500 * at.scale, at.y + 300 * at.scale];"""
    for move in ([1e6, 0], [-1e6, 0], [0, 1e6], [0, -1e6]):
        left, top, right, bottom = run(modules, body, move)
        assert left < 900 and top < 600 and right > 0 and bottom > 0


def test_tiles_cover_what_is_seen_and_no_more(modules: Any) -> None:
    """At the whole image's view one coarse tile, at full resolution a handful, of an image of 10,000 x 10,000 pixels."""
    body = """const image = {width: 10000, height: 10000, levels: 6, tile_size: 512}, size = {width: 1000, height: 800};
        return [view.fit(image, size), {scale: 1, x: -4000, y: -4000}, {scale: 0.3, x: 0, y: 0}].map((at) => {
            const level = view.levelOf(at, image);
            const places = view.visibleTiles(at, image, size, level).map((tile) => view.placeOf(tile, image));
            const spread = [Math.min(...places.map((p) => p.left)), Math.max(...places.map((p) => p.left + p.width))];
            return [level, places.length, spread, view.toImage(at, 0, 0), view.toImage(at, 1000, 800)];
        });"""
    for level, count, (left, right), (x0, _), (x1, _) in run(modules, body):
        assert count <= 12
        assert left <= max(x0, 0) and right >= min(x1, 10_000)
        assert 0 <= level <= 5


# ---- the clock


def test_idle_time_is_counted_up_to_its_limit(modules: Any) -> None:
    body = """let at = clock.startClock(0);
        at = clock.touch(at, 5000, 20);
        at = clock.touch(at, 65000, 20);  // 60 s without a sign: 20 s count
        at = clock.touch(at, 64000, 20);  // a clock that was set back counts nothing
        return [clock.secondsOf(at, 65000, 20), clock.secondsOf(at, 70000, 20), clock.secondsOf(at, 1e9, 20),
                clock.secondsOf(clock.startClock(1000, 12), 1000, 20)];"""
    assert run(modules, body) == [25, 30, 45, 12]


def test_the_clock_warns_before_its_limit_and_can_be_switched_off(modules: Any) -> None:
    seconds = [0, 19.9, 20, 29.9, 30, 500]
    assert run(modules, "return given.map((s) => clock.stateOf(s, 30));", seconds) == [
        "ok",
        "ok",
        "soon",
        "soon",
        "over",
        "over",
    ]
    assert run(modules, "return given.map((s) => clock.stateOf(s, 0));", seconds) == ["ok"] * 6


# ---- the state machine

HELPERS = """
const image = {width: 64, height: 48};
const disc = (x, y, r) => masks.strokeMask(48, 64, [[x, y]], r);
const candidates = (x, y) => [0.5, 0.9, 0.7].map((score, i) => ({mask: disc(x, y, 3 + 3 * i), score, stability: 1}));
const reply = (s) => {
    const [asked, { seq }] = state.ask(s);
    return state.answer(asked, {seq, candidates: candidates(20, 20)});
};
const click = (s, x, y, label = 1, row = null) => state.click(s, {x, y, label, time: 1, row});
const shown = (s) => s.current && s.current.mask ? masks.area(s.current.mask) : null;
const prompts = (s) => s.current ? s.current.points.length + (s.current.box ? 10 : 0) + 100 * s.current.strokes.length : -1;
"""


def machine(page: Any, body: str) -> Any:
    return run(page, HELPERS + body)


def test_undo_and_redo_walk_over_clicks_boxes_strokes_choices_and_drops(modules: Any) -> None:
    """After any number of steps back and as many forward, the state is what it was."""
    body = """
        let s = reply(click(state.initialState(image), 20, 20));
        s = reply(click(s, 25, 20, 0));
        s = reply(state.drawBox(s, {box: [30, 30, 10, 10], time: 2}));
        s = state.choose(s, 2, 3);
        s = state.stroke(s, {mode: "brush", radius: 4, points: [[40, 20], [50, 20]], time: 4});
        s = state.stroke(s, {mode: "eraser", radius: 2, points: [[45, 20]], time: 5});
        s = state.drop(s, 6);
        const seen = [[prompts(s), shown(s)]];
        for (let i = 0; i < 9; i++) { [s] = state.undo(s, 7); seen.push([prompts(s), shown(s)]); }
        const back = [[prompts(s), shown(s)]];
        for (let i = 0; i < 9; i++) { [s] = state.redo(s, 8); back.push([prompts(s), shown(s)]); }
        return [seen, back, s.story.map((event) => event.kind)];"""
    seen, back, story = machine(modules, body)
    assert [prompts for prompts, _ in seen] == [-1, 212, 112, 12, 12, 2, 1, -1, -1, -1]
    assert [prompts for prompts, _ in back] == [-1, 1, 2, 12, 12, 112, 212, -1, -1, -1]
    assert seen[:8] == back[:8][::-1]
    assert story == [
        *["point", "point", "box", "choose", "stroke", "stroke", "drop"], *["undo"] * 7, *["redo"] * 7,
    ]  # fmt: skip


def test_a_new_step_after_undo_forgets_what_was_undone(modules: Any) -> None:
    body = """let s = reply(click(state.initialState(image), 20, 20));
        [s] = state.undo(reply(click(s, 25, 20)), 1);
        s = click(s, 5, 5);
        return [s.future.length, prompts(s)];"""
    assert machine(modules, body) == [0, 2]


def test_answers_out_of_order_never_overwrite_newer_ones(modules: Any) -> None:
    """Complaint 5 of the survey, for every order of three answers, and for answers after undo."""
    body = """
        const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        const ends = orders.map((order) => {
            let s = state.initialState(image);
            const questions = [];
            for (let i = 0; i < 3; i++) {
                const [asked, question] = state.ask(click(s, 10 + i, 20));
                s = asked;
                questions.push(question);
            }
            for (const i of order) s = state.answer(s, {seq: questions[i].seq, candidates: candidates(10 + 10 * i, 20)});
            return [masks.bounds(s.current.mask).left, s.awaiting];
        });
        let [s, question] = state.ask(click(state.initialState(image), 10, 20));
        [s] = state.undo(s, 1);
        s = state.answer(s, {seq: question.seq, candidates: candidates(10, 20)});
        return [ends, s.current];"""
    ends, after_undo = machine(modules, body)
    assert ends == [[ends[0][0], None]] * 6
    assert ends[0][0] == 30 - 6
    assert after_undo is None


def test_the_best_candidate_is_chosen_and_choices_in_a_row_are_one_step(modules: Any) -> None:
    body = """let s = reply(click(state.initialState(image), 20, 20));
        const first = s.current.chosen;
        s = state.choose(state.choose(state.choose(s, 0, 1), 2, 1), 0, 1);
        const [undone] = state.undo(s, 2);
        return [first, s.current.chosen, undone.current.chosen, prompts(undone), state.choose(s, 7, 1) === s];"""
    assert machine(modules, body) == [1, 0, 1, 1, True]


def test_candidates_arrive_one_after_another(modules: Any) -> None:
    """What arrives later is there in earlier steps, too, and what never arrives is asked for when somebody goes back to it."""
    body = """const [asked, { seq }] = state.ask(click(state.initialState(image), 20, 20));
        const arriving = [0.5, 0.9, 0.7].map((score) => ({score, mask: null}));
        arriving[1].mask = disc(20, 20, 6);
        let s = state.answer(asked, {seq, candidates: arriving});
        const early = [s.current.chosen, state.choose(s, 2, 1) === s, state.needsAnswer(s)];
        s = click(s, 30, 20);
        const [incomplete] = state.undo(s, 2);
        arriving[0].mask = disc(20, 20, 3);
        arriving[2].mask = disc(20, 20, 9);
        const [complete] = state.undo(s, 2);
        const chosen = state.choose(complete, 2, 3).current.chosen;
        return [early, state.needsAnswer(incomplete), state.needsAnswer(complete), chosen];"""
    assert machine(modules, body) == [[1, True, False], True, False, 2]


def test_a_selected_mask_becomes_the_mask_prompt(modules: Any) -> None:
    """Complaint 7: refining an existing mask. After painting, the painted mask is the prompt of the next click."""
    body = """const row = {key: "m7", mask: disc(30, 20, 8)};
        let [s, question] = state.ask(click(state.initialState(image), 33, 20, 0, row));
        const same = masks.equal(question.mask, row.mask) && shown(s) === masks.area(row.mask);
        const first = [same, s.current.key, question.points, question.labels];
        s = state.answer(s, {seq: question.seq, candidates: candidates(30, 20)});
        s = state.stroke(s, {mode: "brush", radius: 2, points: [[60, 40]], time: 1});
        const painted = s.current.mask;
        [s, question] = state.ask(click(s, 31, 20));
        const kept = masks.equal(question.mask, painted);
        return [first, kept, state.originOf(s.current)];"""
    assert machine(modules, body) == [[True, "m7", [[33, 20]], [0]], True, "refined"]


def test_origins_say_how_an_object_came_about(modules: Any) -> None:
    body = """const drawn = state.stroke(state.initialState(image), {mode: "brush", radius: 3, points: [[9, 9]], time: 0});
        return [drawn, click(state.initialState(image), 3, 3)].map((s) => state.originOf(s.current));"""
    assert machine(modules, body) == ["drawn", "clicked"]


def test_undoing_an_accepted_mask_gives_its_effect_and_its_prompts_back(modules: Any) -> None:
    body = """const change = (state) => ({kind: "state", key: "a", state});
        const effects = {undo: change("deleted"), redo: change("accepted")};
        let s = state.accept(reply(click(state.initialState(image), 20, 20)), effects);
        const story = s.story.length;
        const [back, undone] = state.undo(s, 1);
        const [again, redone] = state.redo(back, 2);
        return [s.current, story, prompts(back), undone.state, redone.state, again.current];"""
    assert machine(modules, body) == [None, 0, 1, "deleted", "accepted", None]


def test_after_another_model_came_the_same_prompts_are_asked_again(modules: Any) -> None:
    body = """const s = reply(click(state.initialState(image), 20, 20));
        const again = state.askAgain(s);
        const painted = state.stroke(s, {mode: "brush", radius: 2, points: [[60, 40]], time: 1});
        const needs = [s, again, state.askAgain(painted)].map(state.needsAnswer);
        return [...needs, shown(again) === shown(s)];"""
    assert machine(modules, body) == [False, True, False, True]


# ---- drafts


def test_a_draft_brings_back_the_object_and_its_steps(modules: Any) -> None:
    body = """let s = reply(click(state.initialState(image), 20, 20));
        s = state.accept(s, {undo: {kind: "state"}, redo: {kind: "state"}});
        const row = {key: "m7", mask: disc(30, 20, 8)};
        s = reply(click(s, 33, 20, 0, row));
        s = state.stroke(s, {mode: "brush", radius: 2, points: [[60, 40]], time: 1});
        s = reply(click(s, 35, 22));
        const sent = JSON.parse(JSON.stringify(draft.toDraft(s, 12.5, (key) => Number(key.slice(1)))));
        let back = draft.fromDraft(state.initialState(image), sent, (id) => `m${id}`);
        const plain = (name, value) => (value?.columns ? rle.encode(value) : value);
        const sorted = (object) => JSON.stringify(Object.entries(object).sort(), plain);
        const same = sorted(back.current) === sorted(s.current);
        const walk = [];
        for (let i = 0; i < 4; i++) { [back] = state.undo(back, 1); walk.push([prompts(back), state.needsAnswer(back)]); }
        return [same, walk, sent.seconds, draft.toDraft(state.initialState(image), 3, () => 0)];"""
    same, walk, seconds, nothing = machine(modules, body)
    assert same
    assert walk == [[101, False], [1, True], [-1, False], [-1, False]]
    assert (seconds, nothing) == (12.5, None)


# ---- previews


def test_previews_are_asked_for_one_at_a_time_and_dropped_when_stale(modules: Any) -> None:
    body = """const waiting = [], shows = [], asked = [];
        const previews = hover.createHover({
            ask: (point) => { asked.push(point); return new Promise((done) => waiting.push(done)); },
            show: (preview) => shows.push(preview),
        });
        const settle = () => new Promise((done) => setTimeout(done));
        for (let i = 0; i < 5; i++) previews.move(i, [10 * i, 0]);
        const flying = waiting.length;
        waiting.shift()("first"); await settle();
        previews.stop();
        waiting.shift()("stale"); await settle();
        previews.move(9, [90, 0]); previews.move(9, [91, 0]);
        waiting.shift()("last"); await settle();
        return [flying, asked, shows, waiting.length];"""
    flying, asked, shows, left = run(modules, body)
    assert flying == 1
    assert asked == [0, 4, 9]
    assert shows == ["first", None, "last"]
    assert left == 0


# ---- talking to the server


def test_a_save_is_repeated_with_the_same_body_until_it_is_answered(modules: Any) -> None:
    body = """const sent = [], troubles = [], pauses = [];
        const answers = [() => { throw new TypeError("refused"); }, () => new Response("busy", {status: 503}),
                         () => new Response(JSON.stringify({id: 5}), {status: 201})];
        const send = async (path, options) => {
            sent.push([path, options.body, options.headers.Authorization]);
            return answers[sent.length - 1]();
        };
        const calls = api.createApi({token: "secret", fetch: send});
        const row = await calls.persist("POST", "/api/images/1/masks", {request: "abc"},
            {onTrouble: (error) => troubles.push(error.message), wait: async (s) => pauses.push(s)});
        return [sent, row, troubles, pauses];"""
    sent, row, troubles, pauses = run(modules, body)
    assert sent == [["/api/images/1/masks", '{"request":"abc"}', "Bearer secret"]] * 3
    assert row == {"id": 5}
    assert troubles == ["The server does not answer.", "The server answered with status 503."]
    assert pauses == sorted(pauses)


def test_a_refusal_is_thrown_at_once_with_the_servers_sentence(modules: Any) -> None:
    body = """let calls = 0;
        const refusal = '{"error": "bob holds this image", "reason": "leased"}';
        const server = api.createApi({fetch: async () => { calls++; return new Response(refusal, {status: 409}); }});
        const error = await server.persist("POST", "/x", {}).catch((error) => error);
        return [calls, error.status, error.message, error.reason];"""
    assert run(modules, body) == [1, 409, "Bob holds this image.", "leased"]


def test_lines_are_taken_as_they_arrive_however_they_are_cut(modules: Any) -> None:
    body = """const bytes = new TextEncoder().encode('{"index":0,"name":"é"}\\n{"index":1}\\n{"index":2}\\n');
        const answer = (to) => new Response(new ReadableStream({start(stream) {
            for (let i = 0; i < to; i += given) stream.enqueue(bytes.slice(i, Math.min(i + given, to)));
            stream.close();
        }}), {headers: {"content-type": "application/x-ndjson"}});
        let broken = true;
        const send = async () => { const cut = broken; broken = false; return answer(cut ? bytes.length - 4 : bytes.length); };
        const taken = [], troubles = [];
        const calls = api.createApi({fetch: send});
        const options = {onTrouble: (error) => troubles.push(error.message), wait: async () => {}};
        await calls.persistLines("POST", "/api/images/1/prompts", {}, (line) => taken.push(line), options);
        return [taken, troubles];"""
    for size in (1, 2, 7, 100):
        taken, troubles = run(modules, body, size)
        assert [line["index"] for line in taken] == [0, 1, 0, 1, 2], "an answer that ends early is asked for once more"
        assert taken[0]["name"] == "é" and troubles == ["The server's answer ended early."]


# ---- keys


def test_no_key_has_two_meanings(modules: Any) -> None:
    keys = run(modules, "return keys.BINDINGS.flatMap(([, each]) => each);")
    assert len(keys) == len(set(keys))


def test_documented_keys_do_what_they_say(modules: Any) -> None:
    pressed = [
        *[("Enter", {}, "accept"), ("Escape", {}, "drop"), ("n", {}, "next"), ("b", {}, "brush"), ("e", {}, "eraser")],
        *[
            ("h", {}, "hide"),
            ("c", {}, "contrast"),
            ("Tab", {}, "candidateNext"),
            ("1", {}, "candidate1"),
            ("[", {}, "narrower"),
        ],
        *[("z", {}, "undo"), ("Z", {"shiftKey": True}, "undo"), ("z", {"ctrlKey": True}, "undo"), ("y", {}, "redo")],
        *[("Z", {"ctrlKey": True, "shiftKey": True}, "redo"), ("?", {"shiftKey": True}, "help")],
        *[("c", {"ctrlKey": True}, None), ("z", {"altKey": True}, None), ("q", {}, None)],
    ]
    events = [
        {"key": key, "ctrlKey": False, "metaKey": False, "shiftKey": False, "altKey": False, **held} for key, held, _ in pressed
    ]
    assert run(modules, "return given.map(keys.actionOf);", events) == [action for *_, action in pressed]


def test_all_modules_are_asked_for_at_once() -> None:
    """A module that is found only in another module costs a round trip more."""
    page = (STATIC / "index.html").read_text()
    preloaded = set(re.findall(r'modulepreload" href="/static/(\w+\.js)"', page))
    assert preloaded == {path.name for path in STATIC.glob("*.js")} - {"app.js"}


def test_nothing_comes_from_elsewhere() -> None:
    """The page works without a network, and its policy allows no inline script or style."""
    for path in STATIC.iterdir():
        links = set(re.findall(r"https?://[^\s\"')]+", path.read_text())) - {"http://www.w3.org/2000/svg"}
        assert not links, f"{path.name}: {links}"
    page = (STATIC / "index.html").read_text()
    assert " style=" not in page and "<style" not in page and not re.search(r"\son\w+=", page)
