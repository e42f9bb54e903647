import torch

from onp.search.neuron_graph import build_graph
from onp.search.policy import Policy

SUMMARY = torch.tensor([0.9, 0.8, 0.0, 0.1])


def policy_of(backdoored, known, seed: int = 0, relations=("similar", "feeds", "tied"), hint: bool = True) -> Policy:
    graph = build_graph(backdoored.victim, relations)
    return Policy(graph, known, torch.Generator().manual_seed(seed), score=known.taylor if hint else None)


def test_an_untrained_policy_prunes_few_units_and_those_with_high_scores(backdoored, known):
    policy = policy_of(backdoored, known)
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    action = policy.draw(keep, SUMMARY, keep, 400, torch.Generator().manual_seed(0))
    often = action.flip.float().mean(0)
    top = known.taylor.topk(5).indices
    assert often[top].mean() > 0.4
    assert often[known.taylor <= 0].mean() < 0.05
    assert 0 < action.flip.float().mean() < 0.15
    without = policy_of(backdoored, known, hint=False).draw(keep, SUMMARY, keep, 400, torch.Generator().manual_seed(0))
    assert without.flip.float().mean() < 0.03
    assert (without.flip.sum(1) == 0).any()


def test_draws_stay_inside_the_block_and_pruned_units_tend_to_stay_pruned(backdoored, known):
    policy = policy_of(backdoored, known)
    units = backdoored.victim.units
    block = torch.arange(units) < 16
    keep = torch.ones(units, dtype=torch.bool)
    keep[known.taylor[:16].argsort()[:4]] = False
    action = policy.draw(keep, SUMMARY, block, 200, torch.Generator().manual_seed(0))
    assert not action.flip[:, 16:].any()
    assert 0 < action.flip[:, ~keep].float().mean() < 0.4


def test_single_flips_are_the_likeliest_and_others_by_their_probability(backdoored, known):
    policy = policy_of(backdoored, known)
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    keep[known.taylor.topk(3).indices] = False
    allowed = torch.ones_like(keep)
    allowed[::2] = False
    logits = policy(keep, SUMMARY)[0].detach()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([policy.draw_flips(keep, SUMMARY, allowed, 6, generator) for _ in range(400)])
    assert allowed[drawn].all() and all(len(set(row.tolist())) == 6 for row in drawn)
    likeliest = logits.masked_fill(~allowed, -torch.inf).topk(3).indices
    assert torch.equal(drawn[:, :3], likeliest.expand(400, -1))
    rest = allowed.index_fill(0, likeliest, False)
    expected = logits.masked_fill(~rest, -torch.inf).softmax(0)
    counts = torch.bincount(drawn[:, 3], minlength=len(keep)) / 400
    assert (counts - expected).abs().max() < 0.1
    few = torch.arange(len(keep)) < 3
    assert sorted(policy.draw_flips(keep, SUMMARY, few, 6, generator).tolist()) == [0, 1, 2]


def test_log_probability_of_single_flips(backdoored, known):
    policy = policy_of(backdoored, known)
    keep = torch.rand(backdoored.victim.units, generator=torch.Generator().manual_seed(5)) > 0.1
    allowed = torch.rand(len(keep), generator=torch.Generator().manual_seed(6)) > 0.3
    units = allowed.nonzero()[:5, 0]
    found, entropy = policy.flip_log_prob(keep, SUMMARY, allowed, units)
    categorical = torch.distributions.Categorical(logits=policy(keep, SUMMARY)[0][allowed])
    torch.testing.assert_close(found, categorical.log_prob(torch.arange(5)))
    torch.testing.assert_close(entropy, categorical.entropy() / torch.tensor(float(allowed.sum())).log())
    (found.sum() + entropy).backward()
    assert all(p.grad.isfinite().all() for p in policy.unit_head.parameters())


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
    expected = bernoulli.log_prob(action.flip[:, block].float()).sum(1) + normal.log_prob(action.offset[:, last])
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
