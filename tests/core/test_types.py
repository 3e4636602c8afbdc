"""Types: the vocabulary, and the one error that must survive a trip between processes."""

import pickle

from dcd_core.types import ContractError


def test_message_says_what_was_looked_at_got_expected_and_to_try():
    error = ContractError("levels", 0, "an integer of at least 1", "levels=1")
    assert str(error) == "levels: got 0; expected an integer of at least 1. Try: levels=1"
    assert isinstance(error, ValueError)


def test_contract_error_keeps_its_parts_through_pickle():
    error = pickle.loads(pickle.dumps(ContractError("size", (1, 2), [3], "more")))
    assert type(error) is ContractError
    assert (error.what, error.got, error.expected, error.attempt) == ("size", (1, 2), [3], "more")
    assert str(error) == str(ContractError("size", (1, 2), [3], "more"))
