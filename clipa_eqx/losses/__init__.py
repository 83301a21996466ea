"""Contrastive losses over a batch of image-text pairs: whole, spread over devices, tiled, or both.

Each loss takes, for every pair, a reduction over the logits of its row (and column) less its own logit. That form needs
no labels: spread over devices, each device holds the rows of its own images, against the columns of all texts. Value
and gradient are the same in every form. Embeddings are raised to float32 first, so that sums over tiles and devices do
not round to a narrower type.
"""

from ._accuracy import contrastive_accuracy as contrastive_accuracy
from ._sigmoid import sigmoid_contrastive as sigmoid_contrastive
from ._softmax import softmax_contrastive as softmax_contrastive
from ._temperature import clamp_logit_scale as clamp_logit_scale
