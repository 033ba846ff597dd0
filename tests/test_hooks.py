"""Reading and replacing activations leaves nothing behind."""

import pytest
import torch

from minilib import hooks


def hooks_left(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_reading_gives_what_flows(llama):
    down = llama.down_projection(2)
    with hooks.read({"in": down}, at="input") as into, hooks.read({"out": down}) as out:
        llama.logprobs("The capital of France is")
    torch.testing.assert_close(out["out"], into["in"] @ llama.memory(2).T)


def test_reading_can_stop_the_pass(llama):
    ran = []
    llama.blocks[-1].register_forward_hook(lambda *_: ran.append(True))
    with hooks.read({1: llama.blocks[1], 3: llama.blocks[3]}, stop=True) as seen:
        llama.logprobs("The capital of France is")
        raise AssertionError("the pass went on")
    assert set(seen) == {1, 3} and not ran


@pytest.mark.parametrize("stop", [False, True])
def test_a_reader_inside_does_not_swallow_the_stop_of_one_around_it(llama, stop):
    with hooks.read({1: llama.blocks[1]}, stop=True) as outer:
        with hooks.read({0: llama.blocks[0], 3: llama.blocks[3]}, stop=stop) as inner:
            llama.logprobs("The capital of France is")
        raise AssertionError("the outer block went on")
    assert set(outer) == {1} and set(inner) == {0}


def test_replacing_changes_the_answer_and_ends(llama):
    before = llama.logprobs("The capital of France is")
    with hooks.replace(llama.blocks[2], lambda h: h * 0):
        assert not torch.equal(llama.logprobs("The capital of France is"), before)
    assert torch.equal(llama.logprobs("The capital of France is"), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_behind_after_an_exception(llama, error):
    def fail(_):
        raise error

    with pytest.raises(error), hooks.read({0: llama.blocks[0]}), hooks.replace(llama.blocks[2], fail):
        llama.logprobs("The capital of France is")
    assert hooks_left(llama.model) == 0


def test_a_place_that_is_none_is_named(llama):
    with (
        pytest.raises(ValueError, match="at must be 'input' or 'output'"),
        hooks.read({0: llama.blocks[0]}, at="middle"),
    ):
        pass
