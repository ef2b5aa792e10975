// QK-norm and rotation in place, and the new keys and values into a cache. The arithmetic is that of rope.cu.
// HEADS, KV_HEADS, HEAD_DIM (16 to 256, a power of two); NORM = 1 where heads are normed.
//
// qkv: [rows, (HEADS + 2 KV_HEADS) · HEAD_DIM]: queries, keys, values. weight: [HEADS + KV_HEADS, HEAD_DIM].
// cos, sin: [·, HEAD_DIM], the first half of `sin` negated; a row takes the entry of its position, or its own where
// `entry_by_row` is set. keys, values: [slots, KV_HEADS, capacity, HEAD_DIM], or null for no cache; a row whose position is
// below 0 writes nothing there. A head belongs to HEAD_DIM / 8 lanes; grid: (blocks over heads, rows).

#define LANES (HEAD_DIM / 8)
#define ROTATED (HEADS + KV_HEADS)
#define ALL (HEADS + 2 * KV_HEADS)

extern "C" __global__ void __launch_bounds__(256)
    rotate(bf16 *qkv, const bf16 *weight, const bf16 *cos, const bf16 *sin, const int *positions, const int *slots,
           bf16 *keys, bf16 *values, int capacity, int entry_by_row, float eps) {
    const u64 row = blockIdx.y;
    const int group = (blockIdx.x * 256 + threadIdx.x) / LANES, part = threadIdx.x % LANES;
    // Values are only looked at where they are stored; the lanes of a warp stay together for the shuffles.
    const int wanted = keys == nullptr ? ROTATED : ALL;
    const bool real = group < wanted;
    const int head = real ? group : 0;
    bf16 *at = qkv + (row * ALL + head) * HEAD_DIM + part * 8;
    const int position = positions == nullptr ? -1 : positions[row];
    float x[8];
    unpack(*(const uint4 *)at, x);
    const bool turned = head < ROTATED;
#if NORM
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += x[i] * x[i];
    const float inverse = rsqrtf(lanes_sum<LANES>(squares) / HEAD_DIM + eps);
    if (turned) {
        float w[8];
        unpack(*(const uint4 *)(weight + head * HEAD_DIM + part * 8), w);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = rounded(rounded(x[i] * inverse) * w[i]);
    }
#endif
    const u64 entry = entry_by_row ? row : max(position, 0);
    float c[8], s[8];
    unpack(*(const uint4 *)(cos + entry * HEAD_DIM + part * 8), c);
    unpack(*(const uint4 *)(sin + entry * HEAD_DIM + part * 8), s);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float other = __shfl_xor_sync(0xffffffffu, x[i], LANES / 2);
        if (turned) x[i] = rounded(x[i] * c[i]) + rounded(other * s[i]);
    }
    if (!real) return;
    const uint4 packed = pack(x);
    if (turned) *(uint4 *)at = packed;
    if (keys == nullptr || head < HEADS || position < 0) return;
    const int kv_head = turned ? head - HEADS : head - ROTATED;
    bf16 *cache = turned ? keys : values;
    *(uint4 *)(cache + (((u64)slots[row] * KV_HEADS + kv_head) * capacity + position) * HEAD_DIM + part * 8) = packed;
}
