"""English plurals and their singulars, so that each can be made of the other."""

from __future__ import annotations

from ppl_vae.data.word_order import class_of

_PAIRS = (
    "child children person people foot feet tooth teeth mouse mice goose geese knife knives wife wives life "
    "lives leaf leaves loaf loaves half halves calf calves wolf wolves shelf shelves scarf scarves thief "
    "thieves potato potatoes tomato tomatoes hero heroes bus buses human humans german germans roman romans"
)
_FORMS = dict(zip(_PAIRS.split()[::2], _PAIRS.split()[1::2], strict=True))
_SINGULARS = {plural: singular for singular, plural in _FORMS.items()}
_HISSES = ("ss", "sh", "ch", "x", "z")
_VOWELS = "aeiou"


def plural_of(singular: str) -> str:
    """The plural of a word by the rules of English, whether or not it has one.

    Example:
        >>> [plural_of(word) for word in ("dog", "bus stop", "glass", "lady", "woman", "Child")]
        ['dogs', 'bus stops', 'glasses', 'ladies', 'women', 'Children']
    """
    small = singular[:1].lower() + singular[1:]
    if small in _FORMS:
        return singular[:1] + _FORMS[small][1:]
    if singular.endswith("man"):
        return singular[:-2] + "en"
    if singular.endswith(_HISSES):
        return singular + "es"
    if singular.endswith("y") and singular[-2:-1] not in _VOWELS:
        return singular[:-1] + "ies"
    return singular + "s"


def singular_of(word: str) -> str | None:
    """That of which a word is the plural: `plural_of` of it is the word. None if it is no plural.

    Known by its letters: a verb such as `looks` is taken for a plural, unless it is in the grammar of
    `invented_sentences`.

    Example:
        >>> [singular_of(word) for word in ("horses", "dresses", "Women", "grass", "this", "plays", "dog")]
        ['horse', 'dress', 'Woman', None, None, None, None]
    """
    if class_of(word) != "X":
        return None
    small = word[:1].lower() + word[1:]
    made = [word[:1] + _SINGULARS[small][1:]] if small in _SINGULARS else []
    if word.endswith("men"):
        made.append(word[:-2] + "an")
    if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is", "'s")):
        made += [word[:-3] + "y", word[:-2], word[:-1]]
    return next((each for each in made if len(each) > 1 and plural_of(each) == word), None)
