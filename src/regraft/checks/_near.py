"""Pairs of rows that are nearly the same, found without comparing each with each.

Pictures: a perceptual hash of 63 bits each, and of the mirror image. Two that differ in at most 8 bits
differ in at most 2 bits of one of three bands of 21 bits (pigeonhole). Each hash is therefore compared only
with those whose band is its own with 0, 1 or 2 bits changed (Norouzi, Punjani and Fleet 2014, 1307.2982).
What the hash proposes, 16 × 16 grey values must confirm and, where they are there, features of the
source: every limit must be met.

Texts: character 5-grams of the normal form. MinHash signatures (Broder 1997), cut in bands, propose;
the Jaccard similarity of the 5-grams themselves confirms.

Chunks bound the memory; MOST bounds the pairs, and ``pairs`` says where there are more.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..data.columns import some_of
from ..data.types import Example
from ..io.progress import stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray, Kind

    Pairs = NDArray[np.int64]  # [P, 2], the first smaller


MAX_DIFFERENT_BITS = 8  # of 63, in which hashes may differ

MIN_GREY_CORRELATION = 0.97  # least correlation of the 16 × 16 grey values

MIN_COSINE = 0.8  # least cosine of the features

SHINGLE_LETTERS, MIN_JACCARD = 5, 0.8  # letters of a shingle; least similarity of texts

BANDS, BAND_ROWS = 20, 6  # of a MinHash signature: proposes 0.8 with 99.8 %, 0.4 with 8 %

MAX_LETTERS = 20_000  # letters of a text that are looked at

MAX_BAND_NEIGHBOURS = 64  # neighbours in a band of texts that each is compared with

CHUNK_ROWS = 4_096  # rows or pairs at once

MAX_PAIRS = 200_000  # pairs


@dataclass(frozen=True)
class Pair:
    first: int
    second: int
    how: str


def find_pairs(
    rows: Sequence[Example], kind: Kind, features: Mapping[str, FloatArray] | None, between: int | None = None
) -> tuple[list[Pair], bool]:
    """Pairs of positions in ``rows``, in order, and whether there are more than were looked at.

    ``between``: only pairs of a row before that position and one from there on.
    """
    if kind == "image":
        return find_picture_pairs(rows, features, between)
    return find_text_pairs(rows, between) if kind == "text" else ([], False)


# ---------------------------------------------------------------- pictures


def find_picture_pairs(
    rows: Sequence[Example], features: Mapping[str, FloatArray] | None, between: int | None
) -> tuple[list[Pair], bool]:
    seen = [(i, e.facts) for i, e in enumerate(rows) if e.facts and e.facts.hash is not None]
    if len(seen) < 2:
        return [], False
    place = np.array([i for i, _ in seen])
    plain = np.array([f.hash for _, f in seen], np.uint64)
    mirror = np.array([f.mirrored for _, f in seen], np.uint64)
    n = len(seen)
    found, more = close_hashes(np.concatenate([plain, mirror]), MAX_DIFFERENT_BITS, plain=n)
    mirrored = found[:, 1] >= n
    a, b = found[:, 0], found[:, 1] % n
    keep = a < b  # (a, mirror of b) and (b, mirror of a) are one
    if between is not None:
        keep &= (place[a] < between) & (place[b] >= between)
    a, b, mirrored = a[keep], b[keep], mirrored[keep]
    grey = correlate([f.thumb for _, f in seen], a, b, mirrored)
    keep = grey >= MIN_GREY_CORRELATION
    a, b, mirrored, grey = place[a[keep]], place[b[keep]], mirrored[keep], grey[keep]
    result: dict[tuple[int, int], Pair] = {}
    for i, j, turned, r in zip(a.tolist(), b.tolist(), mirrored.tolist(), grey.tolist(), strict=True):
        how = f"{'mirrored, ' if turned else ''}correlation {r:.3f}"
        if features is not None and rows[i].id in features and rows[j].id in features:
            cosine = cosine_similarity(features[rows[i].id], features[rows[j].id])
            if cosine < MIN_COSINE:
                continue
            how += f", cosine of features {cosine:.3f}"
        result.setdefault((i, j), Pair(i, j, how))
    return [result[pair] for pair in sorted(result)], more


def close_hashes(values: NDArray[np.uint64], within: int, plain: int) -> tuple[Pairs, bool]:
    """Pairs [P, 2] of positions, the first below ``plain`` and below the second, whose values differ in
    at most ``within`` bits; and whether MOST cut them."""
    found = np.empty(0, np.int64)  # first · M + second
    size = len(values)
    bands = max(3, within // 3 + 1)
    wide = min(64 // bands, size.bit_length() + 2)  # bits: not many more keys than values
    masks = [
        sum(1 << bit for bit in bits)
        for differ in range(within // bands + 1)
        for bits in combinations(range(wide), differ)
    ]
    tries = stage("near duplicates among pictures", bands * len(masks), "parts")
    for band in range(bands):
        # every third bit, since neighbours go together: frequencies that are alike
        index = Index.of(values, plain, range(63 - band, -1, -bands)[:wide])
        parts, count = [found], len(found)
        for mask in masks:
            for chunk in index.close(mask, within):
                parts.append(chunk)
                count += len(chunk)
                if count > 2 * MAX_PAIRS:
                    found = np.unique(np.concatenate(parts))
                    if len(found) > MAX_PAIRS:
                        return np.stack(np.divmod(found[:MAX_PAIRS], size), 1), True
                    parts, count = [found], len(found)
            tries.advance()
        found = np.unique(np.concatenate(parts))
    if len(found) > MAX_PAIRS:
        return np.stack(np.divmod(found[:MAX_PAIRS], size), 1), True
    return np.stack(np.divmod(found, size), 1), False


@dataclass(frozen=True)
class Index:
    """Values by the key that some of their bits are."""

    values: NDArray[np.uint64]  # [M] by key
    places: NDArray[np.int64]  # [M], where each stood
    counts: NDArray[np.int64]  # [keys], the values of each key
    starts: NDArray[np.int64]  # [keys], the first of them
    keys: NDArray[np.int64]  # [plain], of the values that are looked up, in order
    asked: NDArray[np.int64]  # [plain], where those are in ``values``

    @classmethod
    def of(cls, values: NDArray[np.uint64], plain: int, bits: Sequence[int]) -> Index:
        """The index by some bits, of which the first ``plain`` values are looked up."""
        keys = np.zeros(len(values), np.int64)
        for bit in bits:
            keys = keys << 1 | (values >> np.uint64(bit) & np.uint64(1)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=1 << len(bits))
        asked = np.flatnonzero(order < plain)
        return cls(values[order], order, counts, np.cumsum(counts) - counts, keys[order[asked]], asked)

    def close(self, mask: int, within: int) -> Iterator[NDArray[np.int64]]:
        """Yield first · M + second of close values whose keys differ by exactly ``mask``."""
        other = self.keys ^ mask
        lengths = np.take(self.counts, other)
        some = np.flatnonzero(lengths)
        lengths, begin, asked = lengths[some], self.starts[other[some]], self.asked[some]
        ends = np.cumsum(lengths)
        at = 0
        while at < len(some):  # blocks of bounded size; of one value, all that have its key
            before = int(ends[at - 1]) if at else 0
            to = max(at + 1, int(np.searchsorted(ends, before + CHUNK_ROWS * 256, "right")))
            n = lengths[at:to]
            first = np.repeat(asked[at:to], n)
            second = np.arange(before, before + len(first))
            second += np.repeat(begin[at:to] - ends[at:to] + n, n)
            near = np.bitwise_count(self.values[first] ^ self.values[second]) <= within
            one, two = self.places[first[near]], self.places[second[near]]
            if (keep := one < two).any():
                yield one[keep] * len(self.values) + two[keep]
            at = to


def correlate(thumbs: Sequence[bytes], a: NDArray[Any], b: NDArray[Any], mirrored: NDArray[Any]) -> FloatArray:
    """Of the grey values of each pair [P], one of them mirrored where that is said."""
    result = np.empty(len(a))
    for at in range(0, len(a), CHUNK_ROWS):
        part = slice(at, at + CHUNK_ROWS)
        one = standardise([thumbs[i] for i in a[part]])
        two = standardise([thumbs[i] for i in b[part]])
        two = np.where(mirrored[part][:, None, None], two[:, :, ::-1], two)
        result[part] = (one * two).mean((1, 2))
    return result


def standardise(thumbs: Sequence[bytes]) -> FloatArray:
    """[P, 16, 16] with mean 0 and variance 1 each."""
    x = np.frombuffer(b"".join(thumbs), np.uint8).reshape(-1, 16, 16).astype(np.float64)
    x -= x.mean((1, 2), keepdims=True)
    x /= np.maximum(x.std((1, 2), keepdims=True), 1e-9)
    return x


def cosine_similarity(a: FloatArray, b: FloatArray) -> float:
    """The cosine of two vectors, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0


# ---------------------------------------------------------------- texts


class NormalForms(Sequence[str]):
    """Texts in their normal form, made when they are asked for: all at once would take much memory."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return (normalise(e.inputs) for e in self.rows)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [normalise(e.inputs) for e in self.rows[i]]
        return normalise(self.rows[i].inputs)


def find_text_pairs(rows: Sequence[Example], between: int | None) -> tuple[list[Pair], bool]:
    texts = NormalForms(rows)
    if not len(texts):
        return [], False
    hashes, long = np.empty(len(texts), np.uint64), np.empty(len(texts), bool)
    for i, text in enumerate(texts):
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        hashes[i], long[i] = int.from_bytes(digest), len(text) >= SHINGLE_LETTERS
    _, index, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first = index[inverse]  # of the rows whose text is the same
    again = np.flatnonzero(first < np.arange(len(texts)))
    same = zip(first[again].tolist(), again.tolist(), strict=True)
    result = {p: Pair(*p, "the same but for case, spaces or signs") for p in same}
    if between is not None:  # the first of equal texts is before the border wherever one is
        result = {p: q for p, q in result.items() if p[0] < between <= p[1]}
    unique = np.sort(index)
    long_ones = unique[long[unique]]
    found, more = propose_pairs(NormalForms(some_of(rows, long_ones.tolist())))
    for i, j, value in confirm_pairs(texts, long_ones[found]):
        if between is None or i < between <= j:
            result[i, j] = Pair(i, j, f"similarity {value:.2f}")
    return [result[pair] for pair in sorted(result)], more


def normalise(inputs: tuple[str, ...]) -> str:
    """Without case, spaces and signs, for comparing; a text of signs alone keeps them."""
    parts = []
    for text in inputs:
        plain = unicodedata.normalize("NFKC", text[:MAX_LETTERS]).casefold()
        parts.append(re.sub(r"[\W_]+", " ", plain).strip() or " ".join(plain.split()))
    return "\x1f".join(parts)


def shingles(texts: Sequence[str]) -> Any:
    """A sparse matrix [N, 2^24] of ones where a text has a 5-gram, by its hash."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer="char",
        ngram_range=(SHINGLE_LETTERS, SHINGLE_LETTERS),
        n_features=2**24,
        binary=True,
        norm=None,
        alternate_sign=False,
        lowercase=False,
        dtype=np.float32,
    )
    return vectorizer.transform(texts)


def minhash(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash [N, BANDS · ROWS]: the least of each of so many random functions over a text's 5-grams.

    The functions are (a · x + b) mod 2^64, the upper half of it, with a odd (multiply-shift).
    """
    rng = np.random.default_rng(0)
    count = BANDS * BAND_ROWS
    a = rng.integers(0, 2**63, count, np.uint64) * np.uint64(2) + np.uint64(1)
    b = rng.integers(0, 2**63, count, np.uint64)
    result = np.full((len(texts), count), 2**32 - 1, np.uint32)
    grams = shingles(texts)
    rows = np.flatnonzero(np.diff(grams.indptr))  # texts that have a 5-gram at all
    if not len(rows):
        return result
    numbers, starts = grams.indices.astype(np.uint64), grams.indptr[rows]
    for k in range(count):
        values = ((a[k] * numbers + b[k]) >> np.uint64(32)).astype(np.uint32)
        result[rows, k] = np.minimum.reduceat(values, starts)
    return result


def band_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A number [N, BANDS] for each band of the signatures, equal where the band is.

    They take a third of the signatures' memory. Other bands have the same number once in 2^31 pairs at
    most, which is then proposed for nothing.
    """
    odd = np.random.default_rng(1).integers(0, 2**63, BAND_ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
    result = np.empty((len(texts), BANDS), np.uint64)
    seen, step = stage("near duplicates among texts", len(texts)), CHUNK_ROWS // 8
    for at in range(0, len(texts), step):
        part = minhash(texts[at : at + step])
        bands = part.reshape(-1, BANDS, BAND_ROWS).astype(np.uint64)
        result[at : at + step] = (bands * odd).sum(2, dtype=np.uint64)
        seen.advance(len(part))
    return result


def propose_pairs(texts: Sequence[str]) -> tuple[Pairs, bool]:
    """Pairs [P, 2] of texts of GRAM letters or more whose signatures agree in a band; and whether there are
    more."""
    found, more = np.empty(0, np.int64), False
    if len(texts) < 2:
        return np.empty((0, 2), np.int64), False
    keys = band_keys(texts)
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_key = keys[order, band]
        parts, count = [found], len(found)
        for step in range(1, len(order)):
            at = np.flatnonzero(sorted_key[step:] == sorted_key[:-step])
            if not len(at):
                break
            if step > MAX_BAND_NEIGHBOURS or count > 2 * MAX_PAIRS:
                more = True
                break
            one, two = order[at], order[at + step]
            parts.append(np.minimum(one, two) * len(texts) + np.maximum(one, two))
            count += len(at)
        found = np.unique(np.concatenate(parts))
        if len(found) > MAX_PAIRS:
            return np.stack(np.divmod(found[:MAX_PAIRS], len(texts)), 1), True
    return np.stack(np.divmod(found, len(texts)), 1), more


def confirm_pairs(texts: Sequence[str], found: Pairs) -> Iterator[tuple[int, int, float]]:
    """The pairs whose 5-grams overlap enough, with the overlap."""
    for at in range(0, len(found), CHUNK_ROWS):
        part = found[at : at + CHUNK_ROWS]
        places, index = np.unique(part, return_inverse=True)
        grams = shingles([texts[i] for i in places])
        one, two = grams[index.reshape(-1, 2)[:, 0]], grams[index.reshape(-1, 2)[:, 1]]
        both = np.asarray(one.multiply(two).sum(1)).ravel()
        either = np.asarray(one.sum(1)).ravel() + np.asarray(two.sum(1)).ravel() - both
        value = both / np.maximum(either, 1)
        for k in np.flatnonzero(value >= MIN_JACCARD):
            yield int(part[k, 0]), int(part[k, 1]), float(value[k])
