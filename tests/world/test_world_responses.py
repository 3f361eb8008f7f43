from hypothesis import given
from hypothesis import strategies as st

from prefloop.world.responses import CLAIMS, GRAMMAR, Act, build, count_tokens, of_act, parse

sentences = st.lists(st.sampled_from(list(GRAMMAR.values())), max_size=8).map(tuple)


@given(sentences)
def test_parsing_undoes_building(said):
    parsed = parse(build(said))
    assert parsed.sentences == said
    assert parsed.fragments == ()


@given(sentences, st.text(alphabet="abc XYZ'-<|>", min_size=1).filter(str.strip))
def test_what_is_no_sentence_is_kept_as_a_fragment(said, noise):
    parsed = parse(build(said) + " " + noise)
    assert parsed.sentences == said
    assert parsed.fragments == (" ".join(noise.split()),)


@given(st.text())
def test_any_text_parses_and_nothing_but_white_space_is_lost(text):
    parsed = parse(text)
    length = sum(len("".join(s.text.split())) for s in parsed.sentences)
    length += sum(len("".join(f.split())) for f in parsed.fragments)
    assert length == len("".join(text.split()))


def test_a_cut_off_sentence_is_a_fragment():
    assert parse("I am not sure. The kettle is").fragments == ("The kettle is",)
    assert parse("I am not sure.The kettle is red.").fragments == ()


def test_tokens_are_words_and_punctuation_marks():
    assert count_tokens("") == 0
    assert count_tokens("It is red.") == 4
    assert count_tokens("No, my neighbour's fan!") == 8


def test_the_grammar_is_short_english():
    assert len(GRAMMAR) == 984 + 30 + 60 + 29
    for text in GRAMMAR:
        assert text[0].isupper()
        assert text.endswith(".")
        assert text.count(".") == 1
        assert not set(text) & set("!?")
        assert count_tokens(text) <= 11


def test_claims_hold_each_way_to_say_a_value():
    assert [s.text for s in CLAIMS["fan", "warranty", "two"]] == [
        "The fan has a warranty of two years.",
        "The warranty of the fan is two years.",
    ]
    assert [s.text for s in CLAIMS["", "origin", "Peru"]] == ["It comes from Peru."]
    assert sum(map(len, CLAIMS.values())) == len(of_act(Act.CLAIM)) == 984
