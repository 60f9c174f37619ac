"""The fuzz program itself: every kind of try can be made, and what it finds is told. `make fuzz` makes many."""

import pytest
from fuzz.corpus import Corpus
from fuzz.oracle import Failure, refusal, same
from fuzz.worker import TRIES, one_try

import nbsnn


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", [attempt.__name__ for _, attempt in TRIES])
def test_a_few_tries_of_each_kind_pass(corpus: Corpus, name: str) -> None:
    for seed in range(2 if name in ("random_line", "damaged_run") else 4):
        outcome, what = one_try(seed, corpus, [name])
        assert outcome != "failure", what


def test_a_file_that_loads_as_something_else_is_found(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbsnn.tensorfile._check_hash", lambda *args: None)
    outcomes = [one_try(seed, corpus, ["damaged"]) for seed in range(60)]
    assert any("loads as something else" in what for outcome, what in outcomes if outcome == "failure")


def test_an_error_of_two_lines_is_found() -> None:
    def fail() -> None:
        raise nbsnn.CheckpointError("one\ntwo")

    with pytest.raises(Failure, match="2 lines"):
        refusal(fail)
    assert refusal(lambda: 3) == (3, None)
    assert same({"a": [1, (2.0,)]}, {"a": [1, (2.0,)]})
    assert not same({"a": 1}, {"b": 1})
