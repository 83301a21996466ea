"""Captioned images on disk to batches of uint8 pixels and token ids, and the sets that models are evaluated on."""

from ._convert import convert_pairs as convert_pairs, ConvertSummary as ConvertSummary, ConvertTo as ConvertTo
from ._pair import Pair as Pair, PairSource as PairSource
from ._sets import (
    ClassificationSet as ClassificationSet,
    open_classification as open_classification,
    open_retrieval as open_retrieval,
    RetrievalSet as RetrievalSet,
)
from ._sources import index_pairs as index_pairs, open_pairs as open_pairs
from .image._crop import draw_crop as draw_crop, DRAWS as DRAWS
from .image._fast_jpeg import find_decoder as find_decoder
from .image._image import eval_image as eval_image, ImageError as ImageError, training_image as training_image
from .loading._batch import Batch as Batch, Fault as Fault
from .loading._pipeline import BatchIterator as BatchIterator, training_batches as training_batches
from .loading._workers import ReaderError as ReaderError
from .text._classifier import word_classifier as word_classifier, WordClassifier as WordClassifier
from .text._ragged import Ragged as Ragged
from .text._texts import (
    Caption as Caption,
    keep_texts as keep_texts,
    LiveTexts as LiveTexts,
    open_texts as open_texts,
    TextReader as TextReader,
)
from .text._tokenizer import (
    load_tokenizer as load_tokenizer,
    Tokenizer as Tokenizer,
    train_tokenizer as train_tokenizer,
)
from .text._word_class import word_class as word_class, word_classes as word_classes
from .world import make_world as make_world, WorldSummary as WorldSummary
