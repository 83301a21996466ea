"""The classes of words, numbered as the syntax reduction ranks them."""

NOUN, ADJECTIVE, VERB, OTHER = range(4)
