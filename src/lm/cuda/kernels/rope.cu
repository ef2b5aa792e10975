// The norm of each query and key head (NORM = 1) and the rotary embedding in the half-split layout, and both backward.
// HEADS, KV_HEADS, HEAD_DIM (16, 32, 64, 128 or 256). A row of `qkv` is the query, key and value heads side by side.
// `cos` and `sin` are [T, HEAD_DIM]; the first half of `sin` is negated. A head belongs to HEAD_DIM / 8 lanes, each of
// which holds four elements of either half.

#define HALF (HEAD_DIM / 2)
#define LANES (HEAD_DIM / 8)
#define ROTATED (HEADS + KV_HEADS)
#define ALL (HEADS + 2 * KV_HEADS)

__device__ __forceinline__ void load4(const bf16 *from, float (&x)[4]) {
    uint2 v = *(const uint2 *)from;
    x[0] = low_half(v.x), x[1] = high_half(v.x), x[2] = low_half(v.y), x[3] = high_half(v.y);
}

__device__ __forceinline__ void store4(bf16 *to, const float (&x)[4]) {
    *(uint2 *)to = make_uint2(pack(x[0], x[1]), pack(x[2], x[3]));
}

// qkv [T, ALL · HEAD_DIM] → rotated [T, ROTATED, HEAD_DIM]; `weight` is [ROTATED, HEAD_DIM].
extern "C" __global__ void __launch_bounds__(256)
    rope(const bf16 *qkv, const bf16 *weight, const bf16 *cos, const bf16 *sin, bf16 *rotated_heads, int tokens, float eps) {
    u64 group = (u64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    int element = threadIdx.x % LANES * 4;
    bool real = group < (u64)tokens * ROTATED;
    u64 token = real ? group / ROTATED : 0;
    int head = real ? (int)(group % ROTATED) : 0;
    const bf16 *from = qkv + (token * ALL + head) * HEAD_DIM + element;
    float first[4], second[4];
    load4(from, first), load4(from + HALF, second);
#if NORM
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) squares += first[i] * first[i] + second[i] * second[i];
    float inverse = rsqrtf(lanes_sum<LANES>(squares) / HEAD_DIM + eps);
    float w[2][4];
    load4(weight + head * HEAD_DIM + element, w[0]), load4(weight + head * HEAD_DIM + element + HALF, w[1]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        first[i] = rounded(rounded(first[i] * inverse) * w[0][i]);
        second[i] = rounded(rounded(second[i] * inverse) * w[1][i]);
    }
#endif
    float c[4], s[4], a[4], b[4];
    load4(cos + token * HEAD_DIM + element, c), load4(sin + token * HEAD_DIM + element + HALF, s);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        // Each product is rounded before the sum, as the reference does.
        a[i] = rounded(first[i] * c[i]) - rounded(second[i] * s[i]);
        b[i] = rounded(second[i] * c[i]) + rounded(first[i] * s[i]);
    }
    if (!real) return;
    bf16 *to = rotated_heads + (token * ROTATED + head) * HEAD_DIM + element;
    store4(to, a), store4(to + HALF, b);
}

// The gradients of the rotated queries and keys and of the values, each with its strides, → dqkv [T, ALL · HEAD_DIM].
// `largest` [T], zeros unless it is null, gets the largest magnitude of each row.
extern "C" __global__ void __launch_bounds__(256)
    rope_backward(const bf16 *qkv, const bf16 *weight, const bf16 *cos, const bf16 *sin, const bf16 *dq, long long dq_token,
                  long long dq_head, const bf16 *dk, long long dk_token, long long dk_head, const bf16 *dv,
                  long long dv_token, long long dv_head, bf16 *dqkv, int tokens, float eps, float *largest) {
    u64 group = (u64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    int element = threadIdx.x % LANES * 4;
    bool real = group < (u64)tokens * ALL;
    u64 token = real ? group / ALL : 0;
    int head = real ? (int)(group % ALL) : 0;
    const bf16 *from;
    if (head < HEADS)
        from = dq + token * dq_token + head * dq_head;
    else if (head < ROTATED)
        from = dk + token * dk_token + (head - HEADS) * dk_head;
    else
        from = dv + token * dv_token + (head - ROTATED) * dv_head;
    float a[4], b[4], c[4], s[4], first[4], second[4];
    load4(from + element, a), load4(from + element + HALF, b);
    u64 place = (token * ALL + head) * HEAD_DIM + element;
    bool turned = head < ROTATED;
    load4(cos + token * HEAD_DIM + element, c), load4(sin + token * HEAD_DIM + element + HALF, s);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        first[i] = turned ? a[i] * c[i] + b[i] * s[i] : a[i];
        second[i] = turned ? b[i] * c[i] - a[i] * s[i] : b[i];
    }
#if NORM
    // Lanes of one head agree on `turned`, and all lanes take part in the sums.
    int normed_head = turned ? head : 0;
    float in[2][4], w[2][4], squares = 0.0f, products = 0.0f;
    load4(qkv + place, in[0]), load4(qkv + place + HALF, in[1]);
    load4(weight + normed_head * HEAD_DIM + element, w[0]), load4(weight + normed_head * HEAD_DIM + element + HALF, w[1]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        squares += in[0][i] * in[0][i] + in[1][i] * in[1][i];
        products += first[i] * w[0][i] * in[0][i] + second[i] * w[1][i] * in[1][i];
    }
    float inverse = rsqrtf(lanes_sum<LANES>(squares) / HEAD_DIM + eps);
    float along = lanes_sum<LANES>(products) / HEAD_DIM * inverse * inverse;
    if (turned) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            first[i] = inverse * (first[i] * w[0][i] - in[0][i] * along);
            second[i] = inverse * (second[i] * w[1][i] - in[1][i] * along);
        }
    }
#endif
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) most = fmaxf(most, fmaxf(fabsf(first[i]), fabsf(second[i])));
    most = lanes_max<LANES>(most);
    if (!real) return;
    store4(dqkv + place, first), store4(dqkv + place + HALF, second);
    if (largest && element == 0) atomic_max(largest + token, rounded(most));
}
