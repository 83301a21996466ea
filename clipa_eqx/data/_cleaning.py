"""What is done to a caption before it is split into pieces."""

import html


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
