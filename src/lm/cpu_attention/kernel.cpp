// Attention with the bf16 products of AVX-512, compiled for processors that have them; whoever calls it has asked. Nothing
// is included that could leave a function compiled for these processors to the rest of the program.
//
// Six queries at a time: their scores against all keys that they see are computed 6 x 64 in registers and stored in f32,
// then become weights in bf16, and the sum of the weighted values is computed 6 x 64 in registers again. The scores of six
// queries stay in the first-level cache for some thousand keys, so nothing has to be rescaled on the way.

#include "kernel.h"

#include <immintrin.h>
#include <stdlib.h>

namespace flow_attention {
namespace {

constexpr int TOGETHER = 6;
constexpr int LANES = 16;

// Six queries' f32 scores, and their weights in bf16, of as many keys as there are places.
struct Scores {
    float *scores;
    uint16_t *weights;
    int64_t places;
    float largest[TOGETHER];
};

inline __m512 as_float(__m256i bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

inline uint32_t pair(const uint16_t *at) {
    uint32_t both;
    __builtin_memcpy(&both, at, sizeof both);
    return both;
}

// 2^x for x <= 0: Cephes' exp2f on [-0.5, 0.5], exact to about 2^-23.
inline __m512 exp2_of(__m512 x) {
    // Far below what f32 can hold: 0 in the end, where -inf would give NaN.
    x = _mm512_max_ps(x, _mm512_set1_ps(-160.0f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.535336188319500e-4f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.339887440266574e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.618437357674640e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.550332471162809e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.402264791363012e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.931472028550421e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

// Scores of R queries from `row` on against V x 16 keys from `first` on.
template <int R, int V>
inline void score(const Sequence &s, const uint16_t *q, int64_t row, const uint32_t *packed, int64_t first,
                  Scores &found) {
    __m512 sums[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t p = 0; p < s.dim / 2; p++) {
        __m512bh keys[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) keys[v] = (__m512bh)_mm512_loadu_si512(packed + p * KEYS + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            __m512bh query = (__m512bh)_mm512_set1_epi32((int)pair(q + r * s.q_row + 2 * p));
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], query, keys[v]);
        }
    }
    const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
    const __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const bool inside = first + V * LANES <= (s.causal ? s.keys - s.rows + row + 1 : s.keys);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        __m512 largest = hidden;
        const int64_t seen = s.causal ? s.keys - s.rows + row + r + 1 : s.keys;
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const int64_t key = first + v * LANES;
            __mmask16 visible = 0xffff;
            if (!inside) visible = _mm512_cmplt_epi32_mask(lanes, _mm512_set1_epi32((int)(seen - key)));
            __m512 sum = sums[r][v];
            if (s.mask) {
                // The scale may follow: it leaves 0 and -inf what they are.
                const uint16_t *mask = s.mask + (row + r) * s.mask_row + key;
                const int64_t left = s.keys - key;
                const __mmask16 there = left >= LANES ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
                sum = _mm512_add_ps(sum, as_float(_mm256_maskz_loadu_epi16(there, mask)));
            }
            sum = _mm512_mask_mov_ps(hidden, visible, sum);
            largest = _mm512_max_ps(largest, sum);
            _mm512_storeu_ps(found.scores + r * found.places + key, sum);
        }
        const float own = _mm512_reduce_max_ps(largest);
        if (own > found.largest[r]) found.largest[r] = own;
    }
}

// The weighted sum of V x 16 dimensions of the values, over `pairs` pairs of keys.
template <int R, int V>
inline void weigh(const Sequence &s, const uint32_t *packed, int64_t pairs, const Scores &found, const float *factors,
                  uint16_t *out) {
    __m512 sums[R][V];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh values[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) values[v] = (__m512bh)_mm512_loadu_si512(packed + p * s.dim + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            __m512bh weight = (__m512bh)_mm512_set1_epi32((int)pair(found.weights + r * found.places + 2 * p));
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weight, values[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        const __m512 factor = _mm512_set1_ps(factors[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(sums[r][v], factor));
            _mm256_storeu_si256((__m256i *)(out + r * s.out_row + v * LANES), (__m256i)rounded);
        }
    }
}

// R queries of a head from `row` on.
template <int R>
void attend_rows(const Sequence &s, int64_t head, int64_t row, Scores &found) {
    const int64_t kv_head = head / (s.heads / s.kv_heads);
    const int64_t seen = s.causal ? s.keys - s.rows + row + R : s.keys;
    const uint16_t *q = s.q + row * s.q_row + head * s.q_head;
    const uint32_t *keys = s.packed_k + kv_head * s.key_blocks() * (s.dim / 2) * KEYS;
    for (int r = 0; r < R; r++) found.largest[r] = -__builtin_inff();
    int64_t end = 0;
    for (int64_t first = 0; first < seen; first += KEYS) {
        const uint32_t *block = keys + first * (s.dim / 2);
        switch (seen - first <= 3 * LANES ? (seen - first + LANES - 1) / LANES : 4) {
            case 1: score<R, 1>(s, q, row, block, first, found); break;
            case 2: score<R, 2>(s, q, row, block, first, found); break;
            case 3: score<R, 3>(s, q, row, block, first, found); break;
            default: score<R, 4>(s, q, row, block, first, found);
        }
    }
    end = (seen + LANES - 1) / LANES * LANES;

    // 2 to the power of scores times this is e to the power of the scaled scores.
    const float scale = 1.4426950408889634f / __builtin_sqrtf((float)s.dim);
    float factors[R];
    for (int r = 0; r < R; r++) {
        const __m512 scales = _mm512_set1_ps(scale), largest = _mm512_set1_ps(found.largest[r] * scale);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t key = 0; key < end; key += LANES) {
            const __m512 score = _mm512_loadu_ps(found.scores + r * found.places + key);
            const __m512 weight = exp2_of(_mm512_fmsub_ps(score, scales, largest));
            sum = _mm512_add_ps(sum, weight);
            _mm256_storeu_si256((__m256i *)(found.weights + r * found.places + key),
                                (__m256i)_mm512_cvtneps_pbh(weight));
        }
        factors[r] = 1.0f / _mm512_reduce_add_ps(sum);
    }

    const uint32_t *values = s.packed_v + kv_head * s.key_blocks() * (KEYS / 2) * s.dim;
    uint16_t *out = s.out + row * s.out_row + head * s.out_head;
    const int64_t pairs = (seen + 1) / 2;
    for (int64_t d = 0; d < s.dim; d += 4 * LANES) {
        switch ((s.dim - d) / LANES) {
            case 1: weigh<R, 1>(s, values + d, pairs, found, factors, out + d); break;
            case 2: weigh<R, 2>(s, values + d, pairs, found, factors, out + d); break;
            case 3: weigh<R, 3>(s, values + d, pairs, found, factors, out + d); break;
            default: weigh<R, 4>(s, values + d, pairs, found, factors, out + d);
        }
    }
}

}  // namespace

void pack(const Sequence &s, int64_t unit) {
    const int64_t head = unit / s.key_blocks(), block = unit % s.key_blocks();
    const int64_t first = block * KEYS, there = s.keys - first < KEYS ? s.keys - first : KEYS;
    const uint16_t *k = s.k + first * s.k_row + head * s.k_head;
    const uint16_t *v = s.v + first * s.v_row + head * s.v_head;
    uint32_t *packed_k = s.packed_k + unit * (s.dim / 2) * KEYS;
    uint32_t *packed_v = s.packed_v + unit * (KEYS / 2) * s.dim;
    for (int64_t key = 0; key < KEYS; key++)
        for (int64_t p = 0; p < s.dim / 2; p++)
            packed_k[p * KEYS + key] = key < there ? pair(k + key * s.k_row + 2 * p) : 0;
    for (int64_t key = 0; key < KEYS; key += 2)
        for (int64_t d = 0; d < s.dim; d++) {
            const uint32_t low = key < there ? v[key * s.v_row + d] : 0;
            const uint32_t high = key + 1 < there ? v[(key + 1) * s.v_row + d] : 0;
            packed_v[key / 2 * s.dim + d] = low | high << 16;
        }
}

bool attend(const Sequence &s, int64_t unit) {
    const int64_t head = unit % s.heads, block = unit / s.heads;
    // An odd number of cache lines, so that the six rows do not share places of the cache.
    const int64_t places = (s.key_blocks() * KEYS / 32 | 1) * 32;
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, TOGETHER * places * (sizeof(float) + sizeof(uint16_t)))) return false;
    Scores found{};
    found.scores = (float *)memory;
    found.weights = (uint16_t *)(found.scores + TOGETHER * places);
    found.places = places;
    const int64_t end = (block + 1) * ROWS < s.rows ? (block + 1) * ROWS : s.rows;
    for (int64_t row = block * ROWS; row < end; row += TOGETHER) {
        switch (end - row) {
            case 1: attend_rows<1>(s, head, row, found); break;
            case 2: attend_rows<2>(s, head, row, found); break;
            case 3: attend_rows<3>(s, head, row, found); break;
            case 4: attend_rows<4>(s, head, row, found); break;
            case 5: attend_rows<5>(s, head, row, found); break;
            default: attend_rows<TOGETHER>(s, head, row, found);
        }
    }
    free(memory);
    return true;
}

}  // namespace flow_attention
