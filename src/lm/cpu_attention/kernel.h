// The two kinds of work that attention consists of; each unit of either can run on a thread of its own.

#pragma once

#include <cstdint>

namespace flow_attention {

// Keys that are packed as one unit, and queries that are computed as one.
constexpr int64_t KEYS = 64;
constexpr int64_t ROWS = 48;

// One sequence in bf16. Strides are counted in elements; a head's `dim` elements, a multiple of 16, lie side by side.
struct Sequence {
    const uint16_t *q, *k, *v;
    // [rows, keys], 0 or -inf, or null.
    const uint16_t *mask;
    uint16_t *out;
    int64_t q_row, q_head, k_row, k_head, v_row, v_head, mask_row, out_row, out_head;
    int64_t rows, keys, heads, kv_heads, dim;
    // Whether query i sees the keys 0 to keys - rows + i only.
    bool causal;
    // kv_heads x key_blocks() x dim / 2 x KEYS: of each block of keys, the pairs of dimensions one after another.
    uint32_t *packed_k;
    // kv_heads x key_blocks() x KEYS / 2 x dim: of each pair of keys, the dimensions one after another.
    uint32_t *packed_v;

    int64_t key_blocks() const { return (keys + KEYS - 1) / KEYS; }
    int64_t row_blocks() const { return (rows + ROWS - 1) / ROWS; }
    int64_t pack_units() const { return kv_heads * key_blocks(); }
    int64_t attend_units() const { return heads * row_blocks(); }
};

// Packs a block of keys and values of one head.
void pack(const Sequence &sequence, int64_t unit);

// Computes a block of queries of one head, once everything is packed. False if there is no memory for their scores.
bool attend(const Sequence &sequence, int64_t unit);

}  // namespace flow_attention
