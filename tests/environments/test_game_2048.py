"""2048: the rules against tables written by hand and random boards, and how a game is paid."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.environments.talk import Model, played

from espalier.api.run.taskset import Taskset
from espalier.environments.board_2048 import DIRECTIONS, SIDE, Board, Cells, slid
from espalier.environments.game_2048 import MOVE
from espalier.environments.open_environment import open_environment

Chat = Sequence[Mapping[str, Any]]


def game(**fields: Any) -> Any:
    return open_environment(Taskset.model_validate({"seed": 3, "size": 4, "game2048": fields}))


@pytest.mark.parametrize(
    ("row", "after"),
    [
        ((2, 0, 0, 0), (2, 0, 0, 0)),
        ((0, 0, 0, 2), (2, 0, 0, 0)),
        ((2, 2, 0, 0), (4, 0, 0, 0)),
        ((2, 0, 0, 2), (4, 0, 0, 0)),
        # Of three the two nearest to the side merge.
        ((2, 2, 2, 0), (4, 2, 0, 0)),
        # What has merged merges no second time.
        ((2, 2, 2, 2), (4, 4, 0, 0)),
        ((4, 2, 2, 0), (4, 4, 0, 0)),
        ((2, 4, 2, 4), (2, 4, 2, 4)),
        ((8, 0, 8, 16), (16, 16, 0, 0)),
    ],
)
def test_a_row_slides_and_merges(row: tuple[int, ...], after: tuple[int, ...]) -> None:
    empty = (0,) * SIDE
    assert slid((row, empty, empty, empty), "left")[0] == after
    assert slid((row[::-1], empty, empty, empty), "right")[0] == after[::-1]
    column = tuple((tile, 0, 0, 0) for tile in row)
    assert tuple(line[0] for line in slid(column, "up")) == after
    assert tuple(line[0] for line in slid(column[::-1], "down")) == after[::-1]


TILES = st.sampled_from([0, 0, 2, 2, 4, 8])
BOARDS = st.tuples(*[st.tuples(*[TILES] * SIDE)] * SIDE)


@given(BOARDS, st.sampled_from(DIRECTIONS))
def test_sliding_keeps_the_sum_and_packs_the_tiles(cells: Cells, direction: str) -> None:
    after = slid(cells, direction)
    assert sum(map(sum, after)) == sum(map(sum, cells))
    assert slid(cells, "left") == tuple(tuple(sorted_zeros(row)) for row in slid(cells, "left"))
    assert len([t for row in after for t in row if t]) <= len([t for r in cells for t in r if t])


def sorted_zeros(row: tuple[int, ...]) -> list[int]:
    tiles = [tile for tile in row if tile]
    return tiles + [0] * (len(row) - len(tiles))


def test_a_move_that_moves_nothing_adds_no_tile() -> None:
    cells = ((2, 4, 0, 0), *((0,) * SIDE for _ in range(3)))
    board = Board(cells, random.Random(0))
    assert not board.move("left")
    assert board.cells == cells
    assert board.move("right")
    assert sum(map(sum, board.cells)) in (8, 10)


def test_a_full_board_without_a_pair_is_over() -> None:
    assert Board(((2, 4, 2, 4), (4, 2, 4, 2)) * 2, random.Random(0)).over
    assert not Board(
        ((2, 4, 2, 4), (4, 2, 4, 2), (2, 4, 2, 4), (4, 2, 4, 4)), random.Random(0)
    ).over


def by_word(word: str) -> Callable[[Chat], str]:
    return lambda chat: word


async def test_all_rollouts_of_a_task_see_the_same_first_board_and_then_their_own_tiles() -> None:
    def cycle(chat: Chat) -> str:
        return DIRECTIONS[len(chat) // 2 % 4]

    boards = []
    for rollout in (0, 1, 0):
        model = Model(cycle)
        await played(game(maxTurns=12), model, index=1, rollout=rollout)
        boards.append([chat[-1]["content"] for chat, _ in model.heard])
    assert boards[0][0] == boards[1][0]
    assert boards[0] != boards[1]
    assert boards[0] == boards[2]


async def test_a_move_that_is_none_costs_the_penalty_and_the_limit_ends_the_game() -> None:
    environment = game(target=8, maxTurns=9, invalidMoves={"penalty": "0.1", "limit": 2})
    reward, talk = await played(environment, Model(by_word("I pass")))
    assert (len(talk.rollout.turns), talk.rollout.stop_reason) == (2, "malformed_tool_call")
    reached = math.log2(talk.metadata["highest"]) / 3
    assert reward == pytest.approx(reached - 0.2)
    assert "That is no move" in talk.rollout.prompt[-1]["content"]


async def test_the_target_ends_the_game_with_a_reward_of_1() -> None:
    def cycle(chat: Chat) -> str:
        return DIRECTIONS[len(chat) // 2 % 4]

    reward, talk = await played(
        game(target=8, maxTurns=99, invalidMoves={"penalty": "0", "limit": 99}), Model(cycle)
    )
    assert (reward, talk.rollout.stop_reason) == (1, "done")


async def test_turns_are_bounded_and_what_was_reached_counts() -> None:
    environment = game(maxTurns=3, invalidMoves={"penalty": "0", "limit": 99})
    reward, talk = await played(environment, Model(by_word("up")))
    assert (len(talk.rollout.turns), talk.rollout.stop_reason) == (3, "max_steps")
    assert 0 < reward < 1


@pytest.mark.parametrize("text", ["LEFT", "I go left, not right", "<answer>left</answer>"])
async def test_a_move_is_the_first_direction_that_the_answer_names(text: str) -> None:
    one = await played(game(maxTurns=1), Model(by_word(text)))
    other = await played(game(maxTurns=1), Model(by_word("left")))
    assert one[1].metadata == other[1].metadata


async def test_by_tool_the_board_answers_the_call() -> None:
    def moves(chat: Chat) -> tuple[str, dict[str, Any]]:
        return "move", {"direction": DIRECTIONS[len(chat) // 2 % 4]}

    model = Model(moves)
    _, talk = await played(game(protocol="ToolCall", maxTurns=3), model)
    assert [extra["tools"] for _, extra in model.heard] == [[MOVE]] * 3
    said = model.heard[1][0][-1]
    assert (said["role"], said["tool_call_id"]) == ("tool", "call-1")
    assert talk.metadata["moves"] >= 1


@pytest.mark.parametrize(
    "call",
    [
        ("move", {"direction": "north"}),
        ("move", {"direction": ["left"]}),
        ("move", {}),
        ("other", {"direction": "left"}),
    ],
)
async def test_a_call_that_is_no_move_is_an_invalid_move(call: tuple[str, dict[str, Any]]) -> None:
    _, talk = await played(game(protocol="ToolCall", maxTurns=1), Model(lambda chat: call))
    assert talk.metadata["invalid_moves"] == 1


async def test_by_tool_a_word_is_no_move() -> None:
    _, talk = await played(game(protocol="ToolCall", maxTurns=1), Model(by_word("left")))
    assert talk.metadata["invalid_moves"] == 1
