"""Pairs of rows that are nearly the same, found without comparing each row with each.

Pictures: each picture and its mirror image have a perceptual hash of 63 bits. Two hashes that differ in at
most 8 bits differ in at most 2 bits of one of three bands of 21 bits (pigeonhole). Each hash is therefore
compared only with hashes that share a band up to 2 bits (Norouzi, Punjani and Fleet 2014, 1307.2982).
Then 16 × 16 grey values must confirm the pair, and so must the source's features where they are given.

Texts: bands of MinHash signatures (Broder 1997) of character 5-grams propose pairs. The Jaccard similarity
of the 5-grams confirms them.

Chunks bound the memory. MAX_PAIRS bounds the pairs, and ``find_pairs`` returns whether it cut them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.columns import some_of
from ..data.types import Example
from ..io.progress import stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.arrays import FloatArray, Kind

    Pairs = NDArray[np.int64]  # [P, 2], the first smaller


MAX_DIFFERENT_BITS = 8  # of 63

MIN_GREY_CORRELATION = 0.97  # of the 16 × 16 grey values

MIN_COSINE = 0.8  # of the features

SHINGLE_LETTERS, MIN_JACCARD = 5, 0.8  # letters of a shingle; similarity of texts

BANDS, BAND_ROWS = 20, 6  # of a MinHash signature: a pair of similarity 0.8 is proposed with 99.8 %, of 0.4 with 8 %

MAX_LETTERS = 20_000  # letters of a text that are compared

MAX_BAND_NEIGHBOURS = 64  # texts of equal band key that each text is compared with

CHUNK_ROWS = 4_096  # rows or pairs in memory at once

MAX_PAIRS = 200_000  # pairs


@dataclass(frozen=True)
class Pair:
    """Positions of two rows that are nearly the same, and how near they are."""

    first: int
    second: int
    reason: str


def find_pairs(
    rows: Sequence[Example], kind: Kind, features: Mapping[str, FloatArray] | None, between: int | None = None
) -> tuple[list[Pair], bool]:
    """Return pairs of positions in ``rows``, in order, and whether MAX_PAIRS or MAX_BAND_NEIGHBOURS cut them.

    With ``between``, a pair has one row before that position and one from there on.
    """
    if kind == "image":
        return find_picture_pairs(rows, features, between)
    return find_text_pairs(rows, between) if kind == "text" else ([], False)


# ---------------------------------------------------------------- pictures


def find_picture_pairs(
    rows: Sequence[Example], features: Mapping[str, FloatArray] | None, between: int | None
) -> tuple[list[Pair], bool]:
    """Return pairs of pictures with close hashes that grey values, and features where given, confirm."""
    with_hash = [(i, e.facts) for i, e in enumerate(rows) if e.facts and e.facts.hash is not None]
    if len(with_hash) < 2:
        return [], False
    positions = np.array([i for i, _ in with_hash])
    plain = np.array([f.hash for _, f in with_hash], np.uint64)
    mirror = np.array([f.mirrored for _, f in with_hash], np.uint64)
    n = len(with_hash)
    candidates, cut = close_hashes(np.concatenate([plain, mirror]), MAX_DIFFERENT_BITS, plain=n)
    mirrored = candidates[:, 1] >= n
    a, b = candidates[:, 0], candidates[:, 1] % n
    confirmed = a < b  # (a, mirror of b) and (b, mirror of a) are the same pair
    if between is not None:
        confirmed &= (positions[a] < between) & (positions[b] >= between)
    a, b, mirrored = a[confirmed], b[confirmed], mirrored[confirmed]
    grey = correlate([f.thumb for _, f in with_hash], a, b, mirrored)
    confirmed = grey >= MIN_GREY_CORRELATION
    a, b, mirrored, grey = positions[a[confirmed]], positions[b[confirmed]], mirrored[confirmed], grey[confirmed]
    result: dict[tuple[int, int], Pair] = {}
    for i, j, turned, r in zip(a.tolist(), b.tolist(), mirrored.tolist(), grey.tolist(), strict=True):
        reason = f"{'mirrored, ' if turned else ''}correlation {r:.3f}"
        if features is not None and rows[i].id in features and rows[j].id in features:
            cosine = cosine_similarity(features[rows[i].id], features[rows[j].id])
            if cosine < MIN_COSINE:
                continue
            reason += f", cosine of features {cosine:.3f}"
        result.setdefault((i, j), Pair(i, j, reason))
    return [result[pair] for pair in sorted(result)], cut


def close_hashes(values: NDArray[np.uint64], within: int, plain: int) -> tuple[Pairs, bool]:
    """Return pairs [P, 2] of positions whose values differ in at most ``within`` bits, and whether MAX_PAIRS cut them.

    The first position is below ``plain`` and below the second.
    """
    codes = np.empty(0, np.int64)  # first · M + second
    size = len(values)
    bands = max(3, within // 3 + 1)
    key_bits = min(64 // bands, size.bit_length() + 2)  # bits; more would give many more keys than values
    masks = [
        sum(1 << bit for bit in bits)
        for changes in range(within // bands + 1)
        for bits in combinations(range(key_bits), changes)
    ]
    progress = stage("near duplicates among pictures", bands * len(masks), "parts")
    for band in range(bands):
        # Take every third bit, because neighbouring bits are similar frequencies and correlate.
        index = Index.of(values, plain, range(63 - band, -1, -bands)[:key_bits])
        parts, count = [codes], len(codes)
        for mask in masks:
            for chunk in index.close(mask, within):
                parts.append(chunk)
                count += len(chunk)
                if count > 2 * MAX_PAIRS:
                    codes = np.unique(np.concatenate(parts))
                    if len(codes) > MAX_PAIRS:
                        return as_pairs(codes, size)
                    parts, count = [codes], len(codes)
            progress.advance()
        codes = np.unique(np.concatenate(parts))
    return as_pairs(codes, size)


def as_pairs(codes: NDArray[np.int64], size: int) -> tuple[Pairs, bool]:
    """Return pairs [P, 2] from numbers first · size + second, and whether MAX_PAIRS cut them."""
    return np.stack(np.divmod(codes[:MAX_PAIRS], size), 1), len(codes) > MAX_PAIRS


@dataclass(frozen=True)
class Index:
    """An index of values by a key that is made of some of their bits."""

    values: NDArray[np.uint64]  # [M] by key
    places: NDArray[np.int64]  # [M], positions before sorting
    counts: NDArray[np.int64]  # [keys], number of values
    starts: NDArray[np.int64]  # [keys], index of the first value
    keys: NDArray[np.int64]  # [plain], keys of the values that are looked up
    asked: NDArray[np.int64]  # [plain], indices of these values in ``values``

    @classmethod
    def of(cls, values: NDArray[np.uint64], plain: int, bits: Sequence[int]) -> Index:
        """Build the index by these bits. The first ``plain`` values are looked up."""
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
        start = 0
        while start < len(some):  # blocks of bounded size; a block holds at least all values of one key
            done = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK_ROWS * 256, "right")))
            n = lengths[start:stop]
            first = np.repeat(asked[start:stop], n)
            second = np.arange(done, done + len(first))
            second += np.repeat(begin[start:stop] - ends[start:stop] + n, n)
            near = np.bitwise_count(self.values[first] ^ self.values[second]) <= within
            first_places, second_places = self.places[first[near]], self.places[second[near]]
            if (keep := first_places < second_places).any():
                yield first_places[keep] * len(self.values) + second_places[keep]
            start = stop


def correlate(thumbs: Sequence[bytes], a: NDArray[Any], b: NDArray[Any], mirrored: NDArray[Any]) -> FloatArray:
    """Return the correlation [P] of the grey values of each pair. The second is mirrored where ``mirrored`` is true."""
    result = np.empty(len(a))
    for start in range(0, len(a), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        first = standardise([thumbs[i] for i in a[part]])
        second = standardise([thumbs[i] for i in b[part]])
        second = np.where(mirrored[part][:, None, None], second[:, :, ::-1], second)
        result[part] = (first * second).mean((1, 2))
    return result


def standardise(thumbs: Sequence[bytes]) -> FloatArray:
    """Return thumbnails as [P, 16, 16], each with mean 0 and variance 1."""
    x = np.frombuffer(b"".join(thumbs), np.uint8).reshape(-1, 16, 16).astype(np.float64)
    x -= x.mean((1, 2), keepdims=True)
    x /= np.maximum(x.std((1, 2), keepdims=True), 1e-9)
    return x


def cosine_similarity(a: FloatArray, b: FloatArray) -> float:
    """Return the cosine of two vectors, computed in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else 0.0


# ---------------------------------------------------------------- texts


def find_text_pairs(rows: Sequence[Example], between: int | None) -> tuple[list[Pair], bool]:
    """Return pairs of texts that are equal in normal form or share most of their 5-grams."""
    if not len(rows):
        return [], False
    hashes, long = np.empty(len(rows), np.uint64), np.empty(len(rows), bool)
    for i, e in enumerate(rows):
        text = normalise(e.inputs)
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        hashes[i], long[i] = int.from_bytes(digest), len(text) >= SHINGLE_LETTERS
    _, index, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first = index[inverse]  # of the rows with equal text
    repeats = np.flatnonzero(first < np.arange(len(rows)))
    same = zip(first[repeats].tolist(), repeats.tolist(), strict=True)
    result = {p: Pair(*p, "the same but for case, spaces or punctuation") for p in same}
    if between is not None:  # the first of equal texts is before the border if any of them is
        result = {p: q for p, q in result.items() if p[0] < between <= p[1]}
    unique = np.sort(index)
    long_ones = unique[long[unique]]
    candidates, cut = propose_pairs(some_of(rows, long_ones.tolist()))
    for i, j, value in confirm_pairs(rows, long_ones[candidates]):
        if between is None or i < between <= j:
            result[i, j] = Pair(i, j, f"similarity {value:.2f}")
    return [result[pair] for pair in sorted(result)], cut


def normalise(inputs: tuple[str, ...]) -> str:
    """Return a text without case, spaces and punctuation. A text of punctuation only keeps it."""
    parts = []
    for text in inputs:
        plain = unicodedata.normalize("NFKC", text[:MAX_LETTERS]).casefold()
        parts.append(re.sub(r"[\W_]+", " ", plain).strip() or " ".join(plain.split()))
    return "\x1f".join(parts)


def shingles(texts: Sequence[str]) -> Any:
    """Return a sparse matrix [N, 2^24] with a 1 where a text has a 5-gram, by the 5-gram's hash."""
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
    """Return MinHash signatures [N, BANDS · BAND_ROWS]: the smallest value of each random function over a text's
    5-grams.

    A function is the upper half of (a · x + b) mod 2^64 with a odd (multiply-shift).
    """
    rng = np.random.default_rng(0)
    count = BANDS * BAND_ROWS
    a = rng.integers(0, 2**63, count, np.uint64) * np.uint64(2) + np.uint64(1)
    b = rng.integers(0, 2**63, count, np.uint64)
    result = np.full((len(texts), count), 2**32 - 1, np.uint32)
    grams = shingles(texts)
    rows = np.flatnonzero(np.diff(grams.indptr))  # texts with at least one 5-gram
    if not len(rows):
        return result
    numbers, starts = grams.indices.astype(np.uint64), grams.indptr[rows]
    for k in range(count):
        values = ((a[k] * numbers + b[k]) >> np.uint64(32)).astype(np.uint32)
        result[rows, k] = np.minimum.reduceat(values, starts)
    return result


def band_keys(rows: Sequence[Example]) -> NDArray[np.uint64]:
    """Return a number [N, BANDS] for each band of the signatures, equal where the band is equal.

    The numbers take a third of the signatures' memory. At most once in 2^31 pairs they are equal for different bands;
    such a pair is proposed and then not confirmed.
    """
    odd = np.random.default_rng(1).integers(0, 2**63, BAND_ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
    result = np.empty((len(rows), BANDS), np.uint64)
    progress, step = stage("near duplicates among texts", len(rows)), CHUNK_ROWS // 8
    for start in range(0, len(rows), step):
        part = minhash([normalise(e.inputs) for e in rows[start : start + step]])
        bands = part.reshape(-1, BANDS, BAND_ROWS).astype(np.uint64)
        result[start : start + step] = (bands * odd).sum(2, dtype=np.uint64)
        progress.advance(len(part))
    return result


def propose_pairs(rows: Sequence[Example]) -> tuple[Pairs, bool]:
    """Return pairs [P, 2] of texts whose signatures agree in a band, and whether limits cut them.

    Each text has at least SHINGLE_LETTERS letters.
    """
    codes, cut = np.empty(0, np.int64), False
    if len(rows) < 2:
        return np.empty((0, 2), np.int64), False
    keys = band_keys(rows)
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        sorted_key = keys[order, band]
        parts, count = [codes], len(codes)
        for step in range(1, len(order)):
            matches = np.flatnonzero(sorted_key[step:] == sorted_key[:-step])
            if not len(matches):
                break
            if step > MAX_BAND_NEIGHBOURS or count > 2 * MAX_PAIRS:
                cut = True
                break
            first, second = order[matches], order[matches + step]
            parts.append(np.minimum(first, second) * len(rows) + np.maximum(first, second))
            count += len(matches)
        codes = np.unique(np.concatenate(parts))
        if len(codes) > MAX_PAIRS:
            return as_pairs(codes, len(rows))
    return as_pairs(codes, len(rows))[0], cut


def confirm_pairs(rows: Sequence[Example], pairs: Pairs) -> Iterator[tuple[int, int, float]]:
    """Yield (first, second, similarity) of each proposed pair whose Jaccard similarity reaches MIN_JACCARD."""
    for start in range(0, len(pairs), CHUNK_ROWS):
        part = pairs[start : start + CHUNK_ROWS]
        places, index = np.unique(part, return_inverse=True)
        grams = shingles([normalise(rows[i].inputs) for i in places])
        first, second = grams[index.reshape(-1, 2)[:, 0]], grams[index.reshape(-1, 2)[:, 1]]
        both = np.asarray(first.multiply(second).sum(1)).ravel()
        either = np.asarray(first.sum(1)).ravel() + np.asarray(second.sum(1)).ravel() - both
        value = both / np.maximum(either, 1)
        for k in np.flatnonzero(value >= MIN_JACCARD):
            yield int(part[k, 0]), int(part[k, 1]), float(value[k])
