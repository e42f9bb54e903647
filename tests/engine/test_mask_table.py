import torch

from onp.engine.mask_table import MaskTable, mask_keys


def test_each_missing_mask_is_named_once():
    masks = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1]]).bool()
    table = MaskTable[str]()
    keys, rows = table.missing(masks)
    assert keys == mask_keys(masks) and rows == [0, 1, 3] and keys[0] == keys[2]
    table[keys[1]] = "known"
    assert table.missing(masks) == (keys, [0, 3])
    assert table.missing(masks[1:2]) == (keys[1:2], [])


def test_keys_tell_masks_apart_beyond_eight_units():
    masks = ~torch.eye(40, dtype=torch.bool)
    assert len(set(mask_keys(masks))) == 40
