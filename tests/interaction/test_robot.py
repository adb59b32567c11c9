"""The robot user: clicks that can be worked out by hand, and figures of games that can be played by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.interaction.robot import Game, as_clicks, next_click, play, summarise_games


def rectangle(rows: slice, columns: slice, shape: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


NOTHING = np.zeros((20, 30), np.uint8)


def test_a_missed_lesion_is_clicked_in_its_middle_and_a_false_one_denied() -> None:
    lesion = rectangle(slice(4, 11), slice(10, 17))
    assert next_click(NOTHING, lesion) == (13, 7, True)
    assert next_click(lesion, NOTHING) == (13, 7, False)
    assert next_click(lesion, lesion) is None


def test_the_largest_part_counts_not_the_deepest() -> None:
    long = rectangle(slice(2, 5), slice(0, 30))  # 90 pixels, 2 deep
    round_one = rectangle(slice(8, 15), slice(3, 10))  # 49 pixels, 4 deep
    assert next_click(round_one, long)[2] is True
    assert next_click(long, round_one) == (1, 3, False)  # of equal depth: the first


def test_the_border_of_the_image_is_an_outline() -> None:
    assert next_click(NOTHING, rectangle(slice(0, 20), slice(0, 5))) == (2, 2, True)
    assert next_click(np.zeros((5, 9)), np.ones((5, 9))) == (2, 2, True)


def test_ties_go_to_the_missed_part_and_then_to_the_first() -> None:
    left, right = rectangle(slice(2, 5), slice(2, 5)), rectangle(slice(2, 5), slice(20, 23))
    assert next_click(left, right) == (21, 3, True) and next_click(right, left) == (3, 3, True)
    assert next_click(NOTHING, left | right) == (3, 3, True)


def test_what_was_clicked_is_not_clicked_again() -> None:
    lesion = rectangle(slice(4, 11), slice(10, 25))
    first = next_click(NOTHING, lesion)
    second = next_click(NOTHING, lesion, [first[:2]])
    assert np.hypot(first[0] - second[0], first[1] - second[1]) >= 4
    dot = rectangle(slice(3, 4), slice(3, 4))
    assert next_click(NOTHING, dot, [(3.0, 3.0)]) is None


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        next_click(NOTHING, NOTHING.T)


@settings(max_examples=80, deadline=None)
@given(arrays(bool, (9, 12)), arrays(bool, (9, 12)))
def test_a_click_lies_in_a_largest_error_of_its_kind(mask: np.ndarray, label: np.ndarray) -> None:
    click = next_click(mask, label)
    assert (click is None) == np.array_equal(mask, label)
    if click is None:
        return
    x, y, positive = click
    sizes = []
    for error in (label & ~mask, mask & ~label):
        parts, _ = ndimage.label(error, np.ones((3, 3)))
        sizes += list(np.bincount(parts.ravel())[1:])
    parts, _ = ndimage.label((label & ~mask) if positive else (mask & ~label), np.ones((3, 3)))
    assert parts[y, x] and (parts == parts[y, x]).sum() == max(sizes)
    # No pixel of the component is farther from all that is not of it, the surroundings of the image among it.
    rest = np.argwhere(np.pad(parts != parts[y, x], 1, constant_values=True)) - 1
    depth = [np.hypot(*(rest - p).T).min() for p in np.argwhere(parts == parts[y, x])]
    assert np.hypot(*(rest - (y, x)).T).min() == pytest.approx(max(depth))


def brush(clicks: Clicks) -> np.ndarray:
    """A tool whose answer is known: a square of 3 x 3 pixels per positive click; negative ones take one away."""
    mask = np.zeros((20, 30), np.uint8)
    for points, value in ((clicks.foreground_xy, 1), (clicks.background_xy, 0)):
        for x, y in points:
            mask[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = value
    return mask


def test_clicks_add_up_until_nothing_is_wrong() -> None:
    label = rectangle(slice(3, 6), slice(3, 12))  # three squares side by side
    seen: list[Clicks] = []
    game = play(lambda clicks: seen.append(clicks) or brush(clicks), NOTHING, label, limit=9)
    assert [len(c.foreground_xy) for c in seen] == list(range(1, len(seen) + 1))
    assert all(set(a.foreground_xy) <= set(b.foreground_xy) for a, b in zip(seen, seen[1:]))
    assert len(game.dice) == 10 and game.dice[0] == 0 and game.dice[-1] == 1
    assert all(b > a for a, b in zip(game.dice, game.dice[1 : len(game.clicks)]))
    assert game.dice[len(game.clicks) :] == (1.0,) * (10 - len(game.clicks))
    assert as_clicks(game.clicks) == seen[-1]


def test_a_tool_that_ignores_clicks_gets_other_ones_and_fails() -> None:
    label = rectangle(slice(3, 12), slice(3, 12))
    game = play(lambda clicks: NOTHING, NOTHING, label, limit=5)
    assert len(set(game.clicks)) == 5 and game.dice == (0.0,) * 6
    assert summarise_games([game])["noc"]["80"] == {"mean": 5, "failed": 1}


def test_figures_of_games_by_hand() -> None:
    done = ((1, 1, True),) * 4
    games = [
        Game((0.50, 0.86, 0.80, 0.91, 0.92), done),  # one click spoils
        Game((0.90, 0.90, 0.90, 0.90, 0.90), ()),
        Game((0.10, 0.20, 0.30, 0.40, 0.84), done),
    ]
    summary = summarise_games(games)
    assert summary["images"] == 3 and summary["most_clicks"] == 4
    assert {k: v["mean"] for k, v in summary["dice_after"].items()} == {"0": 0.5, "1": 0.6533, "3": 0.7367}
    assert summary["noc"]["80"] == {"mean": round((1 + 0 + 4) / 3, 3), "failed": 0}
    assert summary["noc"]["85"] == {"mean": round((1 + 0 + 4) / 3, 3), "failed": 0.3333}
    assert summary["noc"]["90"] == {"mean": round((3 + 0 + 4) / 3, 3), "failed": 0.3333}
    # IoU .8 is Dice .889, IoU .85 is Dice .919
    assert summary["noc_iou"]["80"]["mean"] == round((3 + 0 + 4) / 3, 3)
    assert summary["noc_iou"]["85"] == {"mean": 4, "failed": 0.6667}
    assert summary["spoiled"] == 0.125
    assert summarise_games([]) == {"images": 0}


def test_a_game_needs_a_lesion() -> None:
    with pytest.raises(ValueError, match="a lesion"):
        play(brush, NOTHING, NOTHING)


def test_a_robot_that_is_content_stops_and_the_clicks_to_its_level_stand() -> None:
    lesion = rectangle(slice(4, 11), slice(10, 25))
    answers = iter([rectangle(slice(4, 11), slice(10, 15)), rectangle(slice(4, 11), slice(10, 24)), lesion])
    game = play(lambda _: next(answers), NOTHING, lesion, 5, until=0.9)
    assert len(game.clicks) == 2 == game.clicks_to(0.9) and game.dice[2:] == (game.dice[2],) * 4
    content = play(lambda _: NOTHING, lesion, lesion, 5, until=0.9)
    assert content.clicks == () and content.clicks_to(0.9) == 0
