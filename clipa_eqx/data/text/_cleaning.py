"""What is done to a caption before it is split into pieces."""

import html
import string
from typing import Literal


def join_surrogates(text: str) -> str:
    """`text` with surrogates joined to characters where they pair up, and replaced by U+FFFD where they do not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def repair_text(text: str) -> str:
    """`text` with broken Unicode repaired, HTML entities resolved, and each run of white space made one blank.

    Source: OpenAI's CLIP (simple_tokenizer.py) and open_clip (tokenizer.py), which train on captions cleaned so. Broken
    Unicode is repaired by ftfy, which also straightens curly quotes and takes ligatures and full-width letters apart.
    Entities are resolved twice, because captions are often escaped twice.
    """
    # Most captions: nothing in them could change.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        # Most captions never come here; importing ftfy builds tables.
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def canonicalize_text(text: str, *, underscores: Literal["blank", "drop"]) -> str:
    """`text` in lower case, without ASCII punctuation, and with each run of white space made one blank.

    SigLIP's texts are cleaned so, in two forms that differ for few of them.

    Args:
        text: any text.
        underscores: blank: an underscore becomes a blank, and punctuation goes before letters become small (big_vision,
            prompt_engineering.py; open_clip, tokenizer.py). drop: underscores go like other punctuation, after letters
            have become small (transformers, tokenization_siglip.py).
    """
    if underscores == "blank":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    else:
        text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(text.split())
