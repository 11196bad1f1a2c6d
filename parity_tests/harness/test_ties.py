"""Which tokens do not count because other experts were as good, and which do all the same."""

from __future__ import annotations

import numpy as np
import pytest

from harness.ties import Ties
from harness.types import ISOLATED, LOGITS, PROPAGATED, Evidence, Site

TOKENS, EXPERTS = 6, 4
FAR = np.tile([3.0, 2.0, 1.0, 0.0], (TOKENS, 1))  # router logits; experts 0 and 1 are chosen
CHOSEN = np.tile([0, 1], (TOKENS, 1))


def evidence(*near):
    """Two blocks; at tokens `near` of block 0 expert 2 is as good as expert 1, within noise."""
    close = FAR.copy()
    close[list(near), 2] = 2.0 - 1e-7
    sites = {
        Site("router", 0): close,
        Site("experts", 0): CHOSEN,
        Site("router", 1): FAR,
        Site("experts", 1): CHOSEN,
    }
    noise = {Site("router", 0): 1e-7, Site("router", 1): 1e-7}
    both = (ISOLATED, PROPAGATED)
    return Evidence(
        dict.fromkeys(both, sites), {}, dict.fromkeys(both, noise), np.zeros((TOKENS, 3))
    )


def flipped(*tokens):
    actual = CHOSEN[:, ::-1].copy()  # in another order: the same experts
    actual[list(tokens), 0] = 2
    return actual


def left_out(mode, site, near, flips, block=0):
    ties = Ties(evidence(*near), mode, "float32")
    ties.see(Site("experts", block), flipped(*flips))
    tied = ties.tied(site)
    return [] if tied is None else np.flatnonzero(tied).tolist()


def test_a_choice_within_noise_is_a_tie_and_only_where_it_differs():
    block = Site("block", 0)
    assert left_out(ISOLATED, block, near=(2, 4), flips=(2,)) == [2]
    assert left_out(ISOLATED, block, near=(2, 4), flips=()) == []


def test_a_choice_beyond_noise_stays_and_shows_the_defect():
    assert left_out(ISOLATED, Site("block", 0), near=(), flips=(2,)) == []
    assert left_out(PROPAGATED, LOGITS, near=(), flips=(2,)) == []


@pytest.mark.parametrize(
    "site", [Site("block", 1), Site("router", 1), Site("module", 1, "mlp"), LOGITS]
)
def test_later_tokens_attend_to_a_tie_where_errors_travel(site):
    assert left_out(PROPAGATED, site, near=(2,), flips=(2,)) == [2, 3, 4, 5]
    assert left_out(ISOLATED, site, near=(2,), flips=(2,)) == []


def test_in_its_own_block_a_tie_is_one_token():
    assert left_out(PROPAGATED, Site("block", 0), near=(2,), flips=(2,)) == [2]
    assert left_out(PROPAGATED, Site("router", 0), near=(2,), flips=(2,)) == []
    assert left_out(PROPAGATED, Site("embedding", None), near=(2,), flips=(2,)) == []


def test_what_was_close_is_told_whoever_flipped():
    assert np.flatnonzero(Ties(evidence(1, 3), PROPAGATED, "float32").close()).tolist() == [1, 3]


class TestGroups:
    """Two groups of two experts, one of them chosen from: its experts are the two of a token."""

    def left_out(self, edge: float, logits: list[float], chosen: list[int]) -> list[int]:
        """Tokens left out when token 2 goes to other experts; `edge` is how far its groups are."""
        groups = np.tile([9.0, -9.0], (TOKENS, 1))
        groups[2] = [edge, -edge]
        sites = {
            Site("router", 0): np.tile(logits, (TOKENS, 1)),
            Site("groups", 0): groups,
            Site("experts", 0): np.tile(chosen, (TOKENS, 1)),
        }
        noise = {ISOLATED: {Site("router", 0): 1e-7}}
        ties = Ties(
            Evidence({ISOLATED: sites}, {}, noise, np.zeros((TOKENS, 3))), ISOLATED, "float32"
        )
        actual = np.tile(chosen, (TOKENS, 1))
        actual[2] = [2, 3]
        ties.see(Site("experts", 0), actual)
        tied = ties.tied(Site("block", 0))
        return [] if tied is None else np.flatnonzero(tied).tolist()

    def test_better_experts_elsewhere_are_no_choice(self):
        """Expert 2 has a higher score than expert 1, in a group that is out of reach."""
        logits = [3.0, 1.0, 2.0, 0.0]
        assert self.left_out(9.0, logits, [0, 1]) == []
        assert self.left_out(1e-7, logits, [0, 1]) == [2]

    def test_groups_that_do_not_explain_the_choice_explain_nothing(self):
        assert self.left_out(1e-7, [3.0, 1.0, 2.0, 0.0], [0, 2]) == []
