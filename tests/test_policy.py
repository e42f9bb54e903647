import torch

from onp.graph import build_graph
from onp.policy import Policy

SUMMARY = torch.tensor([0.9, 0.8, 0.0, 0.1])


def policy_of(backdoored, known, seed: int = 0, relations=("similar", "feeds", "tied"), hint: bool = True) -> Policy:
    graph = build_graph(backdoored.victim, relations)
    return Policy(graph, known, torch.Generator().manual_seed(seed), score=known.taylor if hint else None)


def test_an_untrained_policy_prunes_few_units_and_those_with_high_scores(backdoored, known):
    policy = policy_of(backdoored, known)
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    action = policy.draw(keep, SUMMARY, keep, 400, torch.Generator().manual_seed(0))
    often = action.prune.float().mean(0)
    top = known.taylor.topk(5).indices
    assert often[top].mean() > 0.4
    assert often[known.taylor <= 0].mean() < 0.05
    assert 0 < action.prune.float().mean() < 0.15
    without = policy_of(backdoored, known, hint=False).draw(keep, SUMMARY, keep, 400, torch.Generator().manual_seed(0))
    assert without.prune.float().mean() < 0.03
    assert (without.prune.sum(1) == 0).any()


def test_draws_stay_inside_the_block_and_pruned_units_tend_to_stay_pruned(backdoored, known):
    policy = policy_of(backdoored, known)
    units = backdoored.victim.units
    block = torch.arange(units) < 16
    keep = torch.ones(units, dtype=torch.bool)
    unit = int(known.taylor[:16].argmin())
    keep[unit] = False
    action = policy.draw(keep, SUMMARY, block, 200, torch.Generator().manual_seed(0))
    assert not action.prune[:, 16:].any()
    fresh = policy.draw(torch.ones_like(keep), SUMMARY, block, 200, torch.Generator().manual_seed(0))
    assert action.prune[:, unit].float().mean() > fresh.prune[:, unit].float().mean() + 0.1


def test_log_probability_is_that_of_independent_decisions(backdoored, known):
    """Against torch.distributions, up to the constant of the offsets' Normal."""
    policy = policy_of(backdoored, known)
    units = backdoored.victim.units
    block = torch.arange(units) >= 40
    keep = torch.rand(units, generator=torch.Generator().manual_seed(5)) > 0.1
    action = policy.draw(keep, SUMMARY, block, 6, torch.Generator().manual_seed(3))
    found, entropy = policy.log_prob(keep, SUMMARY, block, action)
    logits, centre = policy(keep, SUMMARY)
    bernoulli = torch.distributions.Bernoulli(logits=(logits + action.offset[:, policy.graph.layer])[:, block])
    last = policy.graph.layer[-1]
    normal = torch.distributions.Normal(centre[last], 0.5)
    expected = bernoulli.log_prob(action.prune[:, block].float()).sum(1) + normal.log_prob(action.offset[:, last])
    torch.testing.assert_close(found - found[0], expected - expected[0])
    torch.testing.assert_close(entropy, bernoulli.entropy().mean())
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_neighbours_matter_only_with_edges(backdoored, known):
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    changed = keep.clone()
    changed[20] = False
    for relations, expected in ((("similar", "feeds"), True), ((), False)):
        policy = policy_of(backdoored, known, relations=relations)
        with torch.no_grad():
            before, after = policy(keep, SUMMARY)[0], policy(changed, SUMMARY)[0]
        others = torch.arange(len(keep)) != 20
        assert bool(((before - after).abs() > 1e-9)[others].any()) is expected


def test_the_seed_decides_the_weights(backdoored, known):
    first, again, other = (policy_of(backdoored, known, seed) for seed in (1, 1, 2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.embed.weight, other.embed.weight)
