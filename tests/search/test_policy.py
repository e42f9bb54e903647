import torch

from onp.search.neuron_graph import build_graph
from onp.search.policy import Policy

SUMMARY = torch.tensor([0.9, 0.8, 0.0, 0.1])


def policy_of(backdoored, features, seed: int = 0, relations=("similar", "feeds", "tied"), prior: bool = True) -> Policy:
    graph = build_graph(backdoored.victim, relations)
    return Policy(graph, features, torch.Generator().manual_seed(seed), features.taylor if prior else None)


def test_an_untrained_policy_prunes_few_units_and_those_with_high_scores(backdoored, features):
    policy = policy_of(backdoored, features)
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    action = policy.sample(keep, SUMMARY, keep, 400, torch.Generator().manual_seed(0))
    often = action.toggle.float().mean(0)
    top = features.taylor.topk(5).indices
    assert often[top].mean() > 0.4
    assert often[features.taylor <= 0].mean() < 0.05
    assert 0 < action.toggle.float().mean() < 0.15
    without = policy_of(backdoored, features, prior=False).sample(keep, SUMMARY, keep, 400, torch.Generator().manual_seed(0))
    assert without.toggle.float().mean() < 0.03
    assert (without.toggle.sum(1) == 0).any()


def test_samples_stay_inside_the_block_and_pruned_units_tend_to_stay_pruned(backdoored, features):
    policy = policy_of(backdoored, features)
    units = backdoored.victim.units
    block = torch.arange(units) < 16
    keep = torch.ones(units, dtype=torch.bool)
    keep[features.taylor[:16].argsort()[:4]] = False
    action = policy.sample(keep, SUMMARY, block, 200, torch.Generator().manual_seed(0))
    assert not action.toggle[:, 16:].any()
    assert 0 < action.toggle[:, ~keep].float().mean() < 0.4


def test_single_toggles_are_the_likeliest_and_others_by_their_probability(backdoored, features):
    policy = policy_of(backdoored, features)
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    keep[features.taylor.topk(3).indices] = False
    allowed = torch.ones_like(keep)
    allowed[::2] = False
    logits = policy(keep, SUMMARY)[0].detach()
    generator = torch.Generator().manual_seed(0)
    sampled = torch.stack([policy.sample_toggles(keep, SUMMARY, allowed, 6, generator) for _ in range(400)])
    assert allowed[sampled].all() and all(len(set(row.tolist())) == 6 for row in sampled)
    likeliest = logits.masked_fill(~allowed, -torch.inf).topk(3).indices
    assert torch.equal(sampled[:, :3], likeliest.expand(400, -1))
    rest = allowed.index_fill(0, likeliest, False)
    expected = logits.masked_fill(~rest, -torch.inf).softmax(0)
    counts = torch.bincount(sampled[:, 3], minlength=len(keep)) / 400
    assert (counts - expected).abs().max() < 0.1
    few = torch.arange(len(keep)) < 3
    assert sorted(policy.sample_toggles(keep, SUMMARY, few, 6, generator).tolist()) == [0, 1, 2]


def test_log_probability_of_single_toggles(backdoored, features):
    policy = policy_of(backdoored, features)
    keep = torch.rand(backdoored.victim.units, generator=torch.Generator().manual_seed(5)) > 0.1
    allowed = torch.rand(len(keep), generator=torch.Generator().manual_seed(6)) > 0.3
    units = allowed.nonzero()[:5, 0]
    found, entropy = policy.toggle_log_prob(keep, SUMMARY, allowed, units)
    categorical = torch.distributions.Categorical(logits=policy(keep, SUMMARY)[0][allowed])
    torch.testing.assert_close(found, categorical.log_prob(torch.arange(5)))
    torch.testing.assert_close(entropy, categorical.entropy() / torch.tensor(float(allowed.sum())).log())
    (found.sum() + entropy).backward()
    assert all(p.grad.isfinite().all() for p in policy.unit_head.parameters())


def test_log_probability_is_that_of_independent_decisions(backdoored, features):
    """Against torch.distributions, up to the constant of the offsets' Normal."""
    policy = policy_of(backdoored, features)
    units = backdoored.victim.units
    block = torch.arange(units) >= 40
    keep = torch.rand(units, generator=torch.Generator().manual_seed(5)) > 0.1
    action = policy.sample(keep, SUMMARY, block, 6, torch.Generator().manual_seed(3))
    found, entropy = policy.log_prob(keep, SUMMARY, block, action)
    logits, centre = policy(keep, SUMMARY)
    bernoulli = torch.distributions.Bernoulli(logits=(logits + action.offset[:, policy.graph.layer])[:, block])
    last = policy.graph.layer[-1]
    normal = torch.distributions.Normal(centre[last], 0.5)
    expected = bernoulli.log_prob(action.toggle[:, block].float()).sum(1) + normal.log_prob(action.offset[:, last])
    torch.testing.assert_close(found - found[0], expected - expected[0])
    torch.testing.assert_close(entropy, bernoulli.entropy().mean())
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_neighbours_matter_only_with_edges(backdoored, features):
    keep = torch.ones(backdoored.victim.units, dtype=torch.bool)
    changed = keep.clone()
    changed[20] = False
    for relations, expected in ((("similar", "feeds"), True), ((), False)):
        policy = policy_of(backdoored, features, relations=relations)
        with torch.no_grad():
            before, after = policy(keep, SUMMARY)[0], policy(changed, SUMMARY)[0]
        others = torch.arange(len(keep)) != 20
        assert bool(((before - after).abs() > 1e-9)[others].any()) is expected


def test_the_seed_decides_the_weights(backdoored, features):
    first, again, other = (policy_of(backdoored, features, seed) for seed in (1, 1, 2))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.embed.weight, other.embed.weight)
