"""Mutation checks: the tests can tell the neuron from its near misses. Each mutant must fail the property that is about it."""

import inspect

import pytest
import torch

from nbsnn.spiking import functional


def mutant(old, new):
    """`integrate_and_fire` with one piece of the module's text replaced."""
    source = inspect.getsource(functional)
    assert source.count(old) == 1, f"the source no longer holds {old!r} once; adapt the mutation"
    namespace = {"__name__": "mutant"}
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    return namespace["integrate_and_fire"]


def counts(neuron, current, **options):
    options = {"signed": True, **options}
    return neuron(torch.tensor(current, dtype=torch.float64).view(-1, 1), torch.tensor(1.0, dtype=torch.float64), **options)


def a_tie_rounds_up(neuron):
    """Three steps of 1/2 make z = 1.5: exactly half, so the count is 2."""
    return counts(neuron, [0.5, 0.5, 0.5]).sum() == 2


def firing_rounds_to_nearest(neuron):
    """z = 0.75 rounds to 1."""
    return counts(neuron, [0.25, 0.25, 0.25]).sum() == 1


def nothing_is_taken_back_that_was_not_given(neuron):
    """A strong inhibition first leaves a count of 0, not a negative one."""
    return counts(neuron, [-3.0, 0.0, 0.0]).sum() == 0


def the_count_stays_at_the_cap(neuron):
    """Four steps of strong current under a cap of 3."""
    return counts(neuron, [5.0, 5.0, 5.0, 5.0], cap=3).sum() == 3


def a_settled_neuron_at_zero_is_silent(neuron):
    """A membrane of exactly zero under the settle rule is at rest: z = 1/2 means a count of 1, now and later."""
    return counts(neuron, [1.0, -0.5, 0.0, 0.0], cap=3).flatten().tolist() == [1, 0, 0, 0]


def a_spike_in_excess_is_taken_back(neuron):
    """One spike too many for z = 0."""
    return counts(neuron, [1.0, -1.0, 0.0], cap=3).sum() == 0


def what_exceeds_the_threshold_is_kept(neuron):
    """z = 2.7 rounds to 3."""
    return counts(neuron, [0.9, 0.9, 0.9]).sum() == 3


PROPERTIES = (
    a_tie_rounds_up,
    firing_rounds_to_nearest,
    nothing_is_taken_back_that_was_not_given,
    the_count_stays_at_the_cap,
    a_settled_neuron_at_zero_is_silent,
    a_spike_in_excess_is_taken_back,
    what_exceeds_the_threshold_is_kept,
)
MUTANTS = {
    "fires above the threshold only": ("spike = (membrane >= limits", "spike = (membrane > limits", a_tie_rounds_up),
    "starts without the half charge": ("(threshold / 2)", "(threshold * 0)", firing_rounds_to_nearest),
    "takes back without a count": (
        "(membrane <= limits.retract) & (count > 0)",
        "membrane <= limits.retract",
        nothing_is_taken_back_that_was_not_given,
    ),
    "has no cap": (" & (count < limits.levels)).to", ").to", the_count_stays_at_the_cap),
    "takes back at zero": ("(membrane < 0)", "(membrane <= 0)", a_settled_neuron_at_zero_is_silent),
    "keeps every spike": ("- ((membrane < 0)", "- 0 * ((membrane < 0)", a_spike_in_excess_is_taken_back),
    "resets to zero": ("membrane - spike * threshold", "membrane * (spike == 0)", what_exceeds_the_threshold_is_kept),
}


@pytest.mark.parametrize("holds", PROPERTIES)
def test_the_neuron_has_the_property(holds):
    assert holds(functional.integrate_and_fire)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_lacks_the_property(name):
    old, new, holds = MUTANTS[name]
    assert not holds(mutant(old, new))
