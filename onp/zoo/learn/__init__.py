"""`python -m onp.zoo learn`: learns the verdict that ships in onp/pretrained from detection dossiers of a zoo.

Entry point: `learn`. Models are judged by networks whose attack family and architecture they have not seen. scikit-learn
serves the comparison alone; what is shipped is read by `onp.detect.probability`, which needs numpy. May import `onp.detect`,
`onp.attack` and the ground.
"""

from onp.zoo.learn.run import LearnConfig as LearnConfig
from onp.zoo.learn.run import learn as learn
