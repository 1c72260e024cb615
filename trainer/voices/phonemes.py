# ruff: noqa: RUF001 (IPA)
"""One phoneme alphabet for all synthesisers, and who stands in for whom.

Symbols are IPA. A diphthong is two targets, one after the other (eɪ = e + ɪ̯), so the table
of mouth shapes holds articulatory goals only. espeak-ng's mnemonics follow its own phoneme
documentation, flite's are ARPAbet.
"""

from __future__ import annotations

from dataclasses import dataclass

SILENCE = "sil"
CONSONANTS = (
    "p", "b", "m", "f", "v", "θ", "ð", "t", "d", "n", "s", "z", "ʃ", "ʒ", "tʃ", "dʒ", "k", "ɡ",
    "ŋ", "h", "w", "r", "l", "j",
)  # fmt: skip
VOWELS = ("iː", "ɪ", "ɛ", "æ", "ʌ", "ɑː", "ɒ", "ɔː", "ʊ", "uː", "ɜː", "ə")
#: First and second halves of diphthongs: price, face, goat; then the glide towards ɪ and ʊ.
GLIDES = ("a", "e", "o", "ɪ̯", "ʊ̯")
PHONEMES: tuple[str, ...] = (SILENCE, *CONSONANTS, *VOWELS, *GLIDES)
INDEX = {p: i for i, p in enumerate(PHONEMES)}

BILABIALS = frozenset("pbm")
LABIODENTALS = frozenset("fv")
#: Voiceless stops are silent until they burst.
SILENT_STOPS = frozenset({"p", "t", "k", "tʃ"})
#: After a pause the mouth takes its position before any sound comes.
STOPS = SILENT_STOPS | {"b", "d", "ɡ", "dʒ", "m"}

#: Phoneme -> the phonemes whose mouth it borrows where the learning data lack it. Lips and jaw
#: do not see voicing or what the tongue does behind the teeth, so place and rounding decide.
NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "ŋ": ("k", "ɡ"),  # velar: jaw half open, lips as in the vowels around
    "h": ("ə",),  # the mouth is already the next vowel's
    "ʃ": ("dʒ",),  # same protrusion, no closure visible from outside
    "ʒ": ("dʒ",),
    "tʃ": ("dʒ",),
    "ʊ": ("uː",),  # rounded, a little less
    "ɒ": ("ɔː", "ʌ"),  # open like ʌ, rounded like ɔː
    "ɜː": ("ə",),  # a long ə
    "j": ("iː",),  # spread glide
    "w": ("uː",),  # rounded glide
    "θ": ("ð", "s"),
    "ð": ("θ", "z"),
    "ɑː": ("ʌ", "a"),
    "ɔː": ("uː", "ʌ"),
    "æ": ("a", "ɛ"),
    "ʌ": ("a", "ə"),
    "o": ("ə", "ɔː"),
}

_ESPEAK = {
    "p": "p", "b": "b", "m": "m", "f": "f", "v": "v", "T": "θ", "D": "ð", "t": "t", "d": "d",
    "n": "n", "s": "s", "z": "z", "S": "ʃ", "Z": "ʒ", "tS": "tʃ", "dZ": "dʒ", "k": "k", "g": "ɡ",
    "N": "ŋ", "h": "h", "w": "w", "r": "r", "l": "l", "j": "j", "x": "k", "?": SILENCE, "*": "d",
    "a#": "ə", "i:": "iː", "i": "iː", "I": "ɪ", "E": "ɛ", "a": "æ", "aa": "æ", "V": "ʌ", "A:": "ɑː",
    "A@": "ɑː", "A": "ɑː", "0": "ɒ", "O": "ɔː", "O:": "ɔː", "O@": "ɔː", "o@": "ɔː", "U": "ʊ",
    "u:": "uː", "u": "uː", "3:": "ɜː", "3": "ə", "@": "ə", "@L": "ə l", "@2": "ə", "@5": "ə",
    "e": "e", "o": "o", "o:": "o", "e:": "e", "E:": "ɛ", "3r": "ɜː", "@r": "ə",
    "eI": "e ɪ̯", "aI": "a ɪ̯", "OI": "ɔː ɪ̯", "aU": "a ʊ̯", "oU": "o ʊ̯", "e@": "ɛ ə", "i@": "ɪ ə",
    "U@": "ʊ ə", "aI@": "a ɪ̯ ə", "aI3": "a ɪ̯ ə", "aU@": "a ʊ̯ ə", "i@3": "ɪ ə", "ju:": "j uː",
    ";": "j", "_": SILENCE, "_:": SILENCE, "_!": SILENCE, "_|": SILENCE, "": SILENCE,
}  # fmt: skip
_ARPABET = {
    "aa": "ɑː", "ae": "æ", "ah": "ʌ", "ao": "ɔː", "aw": "a ʊ̯", "ax": "ə", "ay": "a ɪ̯", "b": "b",
    "ch": "tʃ", "d": "d", "dh": "ð", "eh": "ɛ", "er": "ɜː", "ey": "e ɪ̯", "f": "f", "g": "ɡ",
    "hh": "h", "hv": "h", "ih": "ɪ", "iy": "iː", "jh": "dʒ", "k": "k", "l": "l", "m": "m",
    "n": "n", "ng": "ŋ", "ow": "o ʊ̯", "oy": "ɔː ɪ̯", "p": "p", "r": "r", "s": "s", "sh": "ʃ",
    "t": "t", "th": "θ", "uh": "ʊ", "uw": "uː", "v": "v", "w": "w", "y": "j", "z": "z",
    "zh": "ʒ", "dx": "d", "el": "ə l", "em": "ə m", "en": "ə n", "axr": "ə", "ix": "ɪ",
    "pau": SILENCE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """One phoneme of an utterance; times in seconds from the first sample."""

    phoneme: str
    start_s: float
    end_s: float


def from_espeak(mnemonic: str) -> tuple[str, ...]:
    """Goals of one espeak-ng mnemonic; marks of variants at its end (t[, a#, I2) are ignored.

    Raises:
        ValueError: the mnemonic is not English.
    """
    name = mnemonic.strip()
    while name not in _ESPEAK and len(name) > 1:
        name = name[:-1]
    if name not in _ESPEAK:
        raise ValueError(f"unknown espeak-ng phoneme {mnemonic!r}")
    return tuple(_ESPEAK[name].split())


def from_arpabet(name: str) -> tuple[str, ...]:
    """Goals of one ARPAbet phone as flite prints it.

    Raises:
        ValueError: the phone is unknown.
    """
    if name not in _ARPABET:
        raise ValueError(f"unknown ARPAbet phone {name!r}")
    return tuple(_ARPABET[name].split())


def spread(goals: tuple[str, ...], start_s: float, end_s: float) -> list[Segment]:
    """Share a synthesiser's segment among its goals: a diphthong's first half takes 55 %."""
    if len(goals) == 1:
        return [Segment(goals[0], start_s, end_s)]
    first = [0.55, *[0.45 / (len(goals) - 1)] * (len(goals) - 1)]
    out, begin = [], start_s
    for goal, share in zip(goals, first, strict=True):
        stop = begin + share * (end_s - start_s)
        out.append(Segment(goal, begin, stop))
        begin = stop
    return out


def begin_at(segments: list[Segment], i: int, start_s: float) -> None:
    """Let segment i begin earlier, at the cost of the one before it."""
    here, before = segments[i], segments[i - 1]
    if before.start_s < start_s < here.start_s:
        segments[i - 1] = Segment(before.phoneme, before.start_s, start_s)
        segments[i] = Segment(here.phoneme, start_s, here.end_s)


def close_after_pause(segments: list[Segment], *, early_s: float = 0.06) -> list[Segment]:
    """Stops after a pause begin `early_s` before their first sound, as mouths do."""
    out = list(segments)
    for i in range(1, len(out)):
        if out[i].phoneme in STOPS and out[i - 1].phoneme == SILENCE:
            start = max(out[i].start_s - early_s, 0.5 * (out[i - 1].start_s + out[i].start_s))
            begin_at(out, i, start)
    return out
