"""plan.json: it comes back as it was written, and refuses prompts that are in two sets."""

from pathlib import Path

import msgspec
import pytest

from producer.plan.keep import parse_choice, parse_keep
from shared.errors import InputError
from shared.plan import Choice
from shared.plan_file import PromptSets, decode_plan, encode_plan, numbered, read_plan
from tests.planned import PROMPTS, card, offers_of, plan_of

CARD = card()


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(CARD)
    path = tmp_path / "plan.json"
    path.write_bytes(encode_plan(plan))
    assert read_plan(path) == plan
    assert read_plan(path).id == plan.id
    assert plan.variant.layers == plan.layers
    assert plan.bits_per_weight == pytest.approx(5.0, abs=0.1)
    assert msgspec.structs.replace(plan, score=1.0).id != plan.id


def test_a_text_in_two_sets_is_refused() -> None:
    sets = PromptSets(
        choosing=numbered(["A  red circle"], [0], 0), proof=numbered(["x", "a red\tCircle"], [0, 1], 7)
    )
    with pytest.raises(InputError, match="'a red circle' is used for choosing and for proof"):
        sets.check()
    with pytest.raises(InputError, match="choosing and for proof"):
        decode_plan(encode_plan(plan_of(CARD, prompts=sets)))


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no plan at .*missing\.json"):
        read_plan(tmp_path / "missing.json")
    with pytest.raises(InputError, match="format 9; this revision knows"):
        decode_plan(encode_plan(plan_of(CARD, format=9)))
    with pytest.raises(InputError, match="this is no plan that this revision knows"):
        decode_plan(b"{}")


def test_seeds_count_on_from_the_run() -> None:
    first, last = numbered(PROMPTS, [0, 5], 2**32 - 1)
    assert (first.seed, last.seed, last.image_index, last.prompt) == (2**32 - 1, 4, 5, PROMPTS[5])


def test_keep_says_at_least_exactly_or_as_it_is() -> None:
    wide, narrow = Choice(bits=8, group_size=64), Choice(bits=3, group_size=64)
    floor, exact, keep, full = map(parse_keep, ("*adaLN*=8", "a=b*=3/64", "*=keep", "*=16"))
    assert floor.matches("block.0.adaLN")
    assert not floor.matches("block.0.q")
    assert exact.pattern == "a=b*"
    assert [floor.allows(option) for option in (wide, narrow, None)] == [True, False, True]
    assert [exact.allows(option) for option in (wide, narrow, None)] == [False, True, False]
    for rule in (keep, full):
        assert [rule.allows(option) for option in (wide, narrow, None)] == [False, False, True]


@pytest.mark.parametrize("text", ["*adaLN*", "=8", "*=", "*=9", "*=-1", "*=4/60", "*=4/", "*=7/64", "*=four"])
def test_a_wish_that_can_not_be_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="4/64"):
        parse_keep(text)


def test_wishes_that_contradict_are_refused() -> None:
    with pytest.raises(InputError, match=r"block.0.q can be nothing"):
        offers_of(CARD, rules=[parse_keep("block.0.q=8"), parse_keep("block.0.v=4/64")])
    with pytest.raises(InputError, match="matches no layer"):
        offers_of(CARD, rules=[parse_keep("nothing*=8")])
    assert parse_choice("4/64") == Choice(bits=4, group_size=64)
