"""Image sets: every file format to one uint8 tensor, normalisation, splits, augmentation.

Entry points: `onp.data.images.load_images` and `onp.data.images.split`. Imports the ground floor of `onp` only.
"""
