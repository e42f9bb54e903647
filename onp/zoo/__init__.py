"""A zoo: hundreds of small networks with and without a backdoor, whose truth is known.

    onp zoo build --out DIR --count 300 --workers 2      # trains networks drawn from `distribution.Distribution`
    onp zoo dossiers --out DIR --workers 2               # what detection measures of each, from three splits of clean images
    onp zoo learn                                        # the verdict that ships in onp/pretrained, from the dossiers

The networks are what the verdict is learned from, and no other result. May import every package but `onp.compare`.
"""
