"""Lists of the K most similar candidates of each query, grown block by block of candidates; exact, without Horovod.

`tf.math.top_k` over all candidates takes longer than the product that their similarities come from. So candidates are
looked at in groups of G neighbours, and the maxima of groups, taken at the speed of memory, again in groups of F:

- The K + 1 highest of the maxima of G F candidates come from as many candidates, of which one may be the query itself.
  The K best others are thus not below the lowest of these maxima: a bound that hardly more than K candidates pass.
- Only groups of G whose maximum reaches the bound are opened, and only candidates that reach it are sorted.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# G and F, if there are enough candidates to have several groups per member of a list.
_GROUP, _GROUPS_TOGETHER, _GROUPS_PER_MEMBER = 16, 4, 4


class Lists(NamedTuple):
    """Members so far, the most similar first, equals in the order of ids; -inf and -1 where there is none yet."""

    similarities: tf.Tensor  # [q, K] float32
    ids: tf.Tensor  # [q, K] int32


class Arrangement(NamedTuple):
    """How a block of at most `candidates` is laid out: s groups of G, the last ones filled up; F divides s."""

    candidates: int
    group: int
    groups_together: int
    num_groups: int

    @property
    def width(self) -> int:
        """Columns of an arranged block, G s."""
        return self.group * self.num_groups


class Block(NamedTuple):
    """Candidates with neighbouring ids."""

    columns: tf.Tensor  # [D, G s]; column l s + p is candidate l of group p, so that maxima run along memory
    first: tf.Tensor  # the id of the first candidate
    last: tf.Tensor  # and the one behind the last


def arrangement(candidates: int, k: int) -> Arrangement:
    """The layout of blocks of up to `candidates` for lists of K members."""
    together = min(_GROUP * _GROUPS_TOGETHER, max(1, candidates // (_GROUPS_PER_MEMBER * (k + 1))))
    group = min(_GROUP, together)
    groups_together = together // group
    return Arrangement(
        candidates, group, groups_together, -(-candidates // (group * groups_together)) * groups_together
    )


def arrange(directions: tf.Tensor, layout: Arrangement) -> tf.Tensor:
    """The columns `[D, G s]` of a block of candidates with the L2-normalised `directions` `[c, D]`, c at least 1."""
    places = tf.range(layout.group)[:, tf.newaxis] + layout.group * tf.range(layout.num_groups)  # [G, s]
    # Copies of the last candidate fill up; see `_maxima_of_real` for why they count for nothing.
    places = tf.minimum(tf.reshape(places, [-1]), tf.shape(directions)[0] - 1)
    return tf.transpose(tf.gather(directions, places))


def merge(lists: Lists, queries: tf.Tensor, query_ids: tf.Tensor, block: Block, layout: Arrangement) -> Lists:
    """Lets the candidates of a block into the lists of some queries; blocks come in the order of ids.

    Args:
      lists: `[q, K]` members so far.
      queries: `[q, D]` float32, L2-normalised.
      query_ids: `[q]` int32; nobody is in a list of his own.
      block: the candidates.
      layout: of the block.
    """
    similarities = tf.matmul(queries, block.columns)  # [q, G s]
    maxima = _maxima_of_real(similarities, block.last - block.first, layout)  # [q, s]
    bound = _bound(maxima, lists.similarities, layout)  # [q, 1]
    opened = tf.cast(tf.where(maxima >= bound), tf.int32)  # [m, 2], in the order of queries and groups
    query, group = opened[:, 0], opened[:, 1]
    layers = tf.range(layout.group) * layout.num_groups
    members = tf.gather(
        tf.reshape(similarities, [-1]), (query * layout.width + group)[:, tf.newaxis] + layers
    )  # [m, G]
    passing = tf.where(members >= tf.gather(bound, query))  # [p, 2], in the order of queries and ids
    passed = tf.gather_nd(members, passing)  # [p]
    query = tf.gather(query, passing[:, 0])
    ids = block.first + tf.gather(group, passing[:, 0]) * layout.group + tf.cast(passing[:, 1], tf.int32)
    is_other = (ids != tf.gather(query_ids, query)) & (ids < block.last)
    passed = tf.where(is_other, passed, -float("inf"))
    return _merge_ragged(lists, passed, ids, query)


def _maxima_of_real(similarities: tf.Tensor, candidates: tf.Tensor, layout: Arrangement) -> tf.Tensor:
    """`[q, s]` maxima of groups, -inf of those that have no candidate.

    Copies that fill up are left out. Several groups of nothing else would pass for as many candidates; and in the last
    group with candidates a copy may be rounded upwards, since products are not rounded alike in all columns: the bound
    would be higher than what it is a copy of, which would be in no list.
    """
    groups = tf.range(layout.num_groups)
    last = (candidates - 1) // layout.group
    members = tf.gather(similarities, tf.range(layout.group) * layout.num_groups + last, axis=1)  # [q, G]
    is_real = last * layout.group + tf.range(layout.group) < candidates
    of_last = tf.reduce_max(tf.where(is_real, members, -float("inf")), axis=1, keepdims=True)  # [q, 1]
    maxima = tf.where(groups == last, of_last, _maxima(similarities, layout.group))
    return tf.where(groups <= last, maxima, -float("inf"))


def _maxima(values: tf.Tensor, group: int) -> tf.Tensor:
    """`[q, s]` maxima of the groups of `[q, G s]` values, whose members are s apart."""
    return tf.reduce_max(tf.reshape(values, [-1, group, values.shape[1] // group]), axis=1)


def _bound(maxima: tf.Tensor, similarities: tf.Tensor, layout: Arrangement) -> tf.Tensor:
    """`[q, 1]` similarities that whoever enters a list reaches: above its last member, and see the top of this file."""
    k = similarities.shape[1]
    # Equals lose against members of earlier blocks, whose ids are lower.
    bound = tf.math.nextafter(similarities[:, -1:], float("inf"))
    if layout.num_groups // layout.groups_together <= k:
        return bound
    together = _maxima(maxima, layout.groups_together)
    return tf.maximum(bound, tf.raw_ops.NthElement(input=together, n=k, reverse=True)[:, tf.newaxis])


def _merge_ragged(lists: Lists, similarities: tf.Tensor, ids: tf.Tensor, query: tf.Tensor) -> Lists:
    """Merges newcomers `[p]` of queries `[p]`, in the order of queries and ids."""
    num_queries, k = tf.shape(lists.ids, tf.int64)[0], lists.ids.shape[1]
    ragged = tf.RaggedTensor.from_value_rowids(similarities, tf.cast(query, tf.int64), num_queries, validate=False)
    # Members stand before newcomers, so that top_k keeps equals in the order of ids.
    candidates = tf.concat([lists.similarities, ragged.to_tensor(-float("inf"))], axis=1)
    candidate_ids = tf.concat([lists.ids, ragged.with_values(ids).to_tensor(-1)], axis=1)
    best, place = tf.math.top_k(candidates, k)
    return Lists(best, tf.gather(candidate_ids, place, batch_dims=1))
