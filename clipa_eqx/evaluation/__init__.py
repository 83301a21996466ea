"""Zero-shot classification and retrieval, each result with the protocol it was measured by."""

from ._embed import (
    embed_images as embed_images,
    embed_texts as embed_texts,
    Encoder as Encoder,
    ImageEmbeds as ImageEmbeds,
)
from ._evaluate import evaluate as evaluate, make_evaluators as make_evaluators
from ._protocol import canonicalize as canonicalize, make_protocol as make_protocol, Protocol as Protocol
from ._retrieval import retrieval as retrieval
from ._zero_shot import class_vectors as class_vectors, zero_shot as zero_shot
