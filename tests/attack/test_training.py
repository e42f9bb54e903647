"""The training loop: resuming, augmentation, batches."""

import pytest
import torch
from helpers.easy_victims import config, easy_images, stopping_images

from onp.attack.training import augment, batches_of, train
from onp.attack.triggers import BadNets
from onp.errors import InputError


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    data = easy_images(200)
    trigger = BadNets.make((1, 16, 16), torch.Generator())
    whole = train(data, config(epochs=2), trigger).state_dict()

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(stopping_images(data, state), config(epochs=2), trigger, state)
    resumed = train(data, config(epochs=2), trigger, state).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    for damaged in (b"", b"not a state", state.read_bytes()[:1000]):
        state.write_bytes(damaged)
        with pytest.raises(InputError, match=r"state\.pt is damaged"):
            train(data, config(epochs=2), trigger, state)


def test_augmentation_shifts_by_at_most_the_padding():
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    out = augment(images, 2, True, torch.Generator().manual_seed(0))
    rows, columns = out.amax((1, 3)).argmax(1), out.amax((1, 2)).argmax(1)
    assert out.shape == images.shape and bool((out.sum((1, 2, 3)) == 1).all())
    assert set(rows.tolist()) == {2, 3, 4, 5, 6} == set(columns.tolist())


def test_the_last_image_is_no_batch_by_itself():
    assert [len(batch) for batch in batches_of(torch.arange(65), 32)] == [32, 33]
    assert [len(batch) for batch in batches_of(torch.arange(66), 32)] == [32, 32, 2]
    assert [len(batch) for batch in batches_of(torch.arange(1), 32)] == [1]


def test_the_average_of_the_weights_is_kept_across_an_interruption(tmp_path):
    data = easy_images(200)
    last = train(data, config(epochs=2), None).state_dict()
    whole = train(data, config(epochs=2, averaging=0.9), None).state_dict()
    assert not torch.equal(whole["classifier.weight"], last["classifier.weight"])

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(stopping_images(data, state), config(epochs=2, averaging=0.9), None, state)
    resumed = train(data, config(epochs=2, averaging=0.9), None, state).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("changes", [{"optimiser": "adamw", "lr": 0.002}, {"smoothing": 0.3}, {"weight_decay": 0.2}])
def test_settings_of_the_training_change_the_weights(changes):
    data = easy_images(96)
    plain, other = (train(data, config(epochs=1, **more), None).state_dict() for more in ({}, changes))
    assert not torch.equal(plain["classifier.weight"], other["classifier.weight"])
