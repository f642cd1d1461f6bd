// Previews of the mask under the pointer: at most one question at a time, asked about the newest place, dropped when stale.

const NEAR = 2; // pixels of the canvas that the pointer has to move before another preview is asked for

/**
 * Returns {move, stop}. `ask(point)` returns a promise of a preview; `show(preview or null, point)` draws it.
 * `move(point, place)` takes the place in the image and on the canvas; `stop()` forgets the preview and what is in flight.
 */
export function createHover({ ask, show }) {
  let wanted = null; // where the pointer is
  let flying = false;
  let turn = 0; // answers of earlier turns are stale
  let last = null; // the place on the canvas of the newest question

  async function next() {
    if (flying || !wanted) return;
    const { point, place } = wanted;
    const mine = turn;
    wanted = null;
    last = place;
    flying = true;
    let preview = null;
    try {
      preview = await ask(point);
    } catch {
      preview = null; // a preview that fails is not shown; the click that follows says why
    }
    flying = false;
    if (mine === turn) show(preview, point);
    next();
  }

  return {
    move(point, place) {
      if (last && Math.hypot(place[0] - last[0], place[1] - last[1]) < NEAR) return;
      wanted = { point, place };
      next();
    },
    stop() {
      turn++;
      wanted = last = null;
      show(null, null);
    },
  };
}
