"""Is there a backdoor, and towards which class: probabilities, and the surrogate triggers of a target class.

    bn        = bn_statistics(victim, images)                    # BN statistics, measured once
    detection = detect_targets(victim, clean, bn, run)           # anomaly per detector and class -> probabilities
    bank      = invert_triggers(victim, target, clean, run)      # surrogate triggers for one target class

Detectors: `detectors` (augmentation bias, latent minimum-norm shift), `bn_statistics` (BN shift, prior shift), `inversion` of
the `trigger_families`, and `pgd`; `class_features` and `probability` make probabilities of their costs. Only clean images are
read. May import the ground floor, `onp.data`, `onp.model` and `onp.engine`.
"""
