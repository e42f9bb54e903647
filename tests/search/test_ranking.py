import torch

from onp.search.ranking import pruned_first, top_masks


def test_masks_prune_the_highest_scores():
    score = torch.randn(200, generator=torch.Generator().manual_seed(0))
    masks = top_masks(score, 10)
    order = score.argsort(descending=True)
    sizes = (~masks).sum(1).tolist()
    assert sizes[0] == 1 and sizes == sorted(set(sizes)) and sizes[-1] <= 60
    for mask, size in zip(masks, sizes, strict=True):
        assert set((~mask).nonzero()[:, 0].tolist()) == set(order[:size].tolist())
    assert top_masks(-score.abs(), 10).shape == (0, 200)


def test_the_first_units_of_an_order_are_pruned():
    masks = pruned_first(torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))
    assert masks.tolist() == [[True, True, True], [True, True, False], [False, True, False]]
