// Attention of one new token per row against the cache of its slot (grouped queries; flash-decoding, Dao et al. 2023):
// the tokens of a row are split over blocks, and the last block of a row to finish merges what all of them found.
//
// Compiled per model: HEAD_DIM is 16 to 256, a power of two; GROUP is the number of query heads per key head.

#define LANES (HEAD_DIM / 8)      // threads that share one token, 16 bytes each
#define TOKENS (32 / LANES)       // tokens a warp sees at once
#define WARPS 4
#define UNROLL 4                  // loads in flight per thread

#define NOTHING -1e30f

// qkv: [rows, (heads + 2 kv_heads) · HEAD_DIM], rotated. keys, values: [slots, kv_heads, capacity, HEAD_DIM], the new
// token's among them. positions: the new token's position, below 0 for a row that is done, which gets zeros.
// out: [rows, heads · HEAD_DIM]. factor: softmax scale · log2(e).
// partial: f32 [rows · kv_heads, splits, GROUP, HEAD_DIM + 2]; done: [rows · kv_heads], zero before and after.
// Grid: (kv_heads, rows, splits), 128 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    decode_attention(const bf16 *qkv, const bf16 *keys, const bf16 *values,
                     const int *positions, const int *slots, bf16 *out, float *partial, unsigned *done,
                     int kv_heads, int capacity, float factor) {
    const int kv_head = blockIdx.x, row = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int sub = lane / LANES, part = lane % LANES;
    const int length = positions[row] + 1;
    const int share = (length + splits - 1) / splits;
    const int begin = split * share, end = min(length, begin + share);
    const long long base = ((long long)slots[row] * kv_heads + kv_head) * capacity;
    const bf16 *k_at = keys + base * HEAD_DIM + part * 8;
    const bf16 *v_at = values + base * HEAD_DIM + part * 8;

    const int width = (GROUP + 2) * kv_heads * HEAD_DIM;
    float q[GROUP][8], acc[GROUP][8], most[GROUP], sum[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        unpack(*(const uint4 *)(qkv + (u64)row * width + (kv_head * GROUP + g) * HEAD_DIM + part * 8), q[g]);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            q[g][i] *= factor;
            acc[g][i] = 0.0f;
        }
        most[g] = NOTHING;
        sum[g] = 0.0f;
    }
    for (int first = begin + warp * TOKENS; first < end; first += WARPS * TOKENS * UNROLL) {
        uint4 k_raw[UNROLL], v_raw[UNROLL];
        bool there[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int token = first + u * WARPS * TOKENS + sub;
            there[u] = token < end;
            const long long at = (long long)(there[u] ? token : begin) * HEAD_DIM;
            k_raw[u] = *(const uint4 *)(k_at + at);
            v_raw[u] = *(const uint4 *)(v_at + at);
        }
        float score[UNROLL][GROUP];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            float k[8];
            unpack(k_raw[u], k);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float dot = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) dot += q[g][i] * k[i];
#pragma unroll
                for (int offset = LANES / 2; offset > 0; offset >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
                score[u][g] = there[u] ? dot : NOTHING;
            }
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float top = most[g];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) top = fmaxf(top, score[u][g]);
            const float shrink = exp2f(most[g] - top);
            most[g] = top;
            sum[g] *= shrink;
#pragma unroll
            for (int i = 0; i < 8; i++) acc[g][i] *= shrink;
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                score[u][g] = there[u] ? exp2f(score[u][g] - top) : 0.0f;
                sum[g] += score[u][g];
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            float v[8];
            unpack(v_raw[u], v);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
#pragma unroll
                for (int i = 0; i < 8; i++) acc[g][i] += score[u][g] * v[i];
            }
        }
    }

    // Merge the groups of lanes of a warp, then the warps of the block.
    __shared__ float warp_most[WARPS][GROUP], warp_sum[WARPS][GROUP], warp_acc[WARPS][GROUP][HEAD_DIM];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
#pragma unroll
        for (int offset = LANES; offset < 32; offset <<= 1) {
            const float other_most = __shfl_xor_sync(0xffffffffu, most[g], offset);
            const float other_sum = __shfl_xor_sync(0xffffffffu, sum[g], offset);
            const float top = fmaxf(most[g], other_most);
            const float mine = exp2f(most[g] - top), other = exp2f(other_most - top);
            sum[g] = sum[g] * mine + other_sum * other;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float other_acc = __shfl_xor_sync(0xffffffffu, acc[g][i], offset);
                acc[g][i] = acc[g][i] * mine + other_acc * other;
            }
            most[g] = top;
        }
        if (sub == 0) {
#pragma unroll
            for (int i = 0; i < 8; i++) warp_acc[warp][g][part * 8 + i] = acc[g][i];
            if (part == 0) {
                warp_most[warp][g] = most[g];
                warp_sum[warp][g] = sum[g];
            }
        }
    }
    __syncthreads();
    const int pair = row * kv_heads + kv_head;
    bf16 *target = out + (long long)pair * GROUP * HEAD_DIM;
    // A thread per two columns, so that bf16 is written in whole words.
    for (int at = threadIdx.x * 2; at < GROUP * HEAD_DIM; at += WARPS * 64) {
        const int g = at / HEAD_DIM, column = at % HEAD_DIM;
        float top = NOTHING;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, warp_most[w][g]);
        float total = 0.0f, low = 0.0f, high = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float weight = exp2f(warp_most[w][g] - top);
            total += warp_sum[w][g] * weight;
            low += warp_acc[w][g][column] * weight;
            high += warp_acc[w][g][column + 1] * weight;
        }
        if (splits == 1) {
            const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
            *(unsigned *)(target + at) = pack(low * inverse, high * inverse);
        } else {
            float *mine = partial + ((long long)(pair * splits + split) * GROUP + g) * (HEAD_DIM + 2);
            mine[column] = low;
            mine[column + 1] = high;
            if (column == 0) {
                mine[HEAD_DIM] = top;
                mine[HEAD_DIM + 1] = total;
            }
        }
    }
    if (splits == 1) return;

    // The counter wraps to zero by itself, ready for the next step.
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(done + pair, splits - 1) == splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int at = threadIdx.x * 2; at < GROUP * HEAD_DIM; at += WARPS * 64) {
        const int g = at / HEAD_DIM, column = at % HEAD_DIM;
        const float *found = partial + ((long long)pair * splits * GROUP + g) * (HEAD_DIM + 2);
        const int step = GROUP * (HEAD_DIM + 2);
        float top = NOTHING;
        for (int s = 0; s < splits; s++) top = fmaxf(top, __ldcg(found + s * step + HEAD_DIM));
        float total = 0.0f, low = 0.0f, high = 0.0f;
        for (int s = 0; s < splits; s++) {
            const float weight = exp2f(__ldcg(found + s * step + HEAD_DIM) - top);
            total += __ldcg(found + s * step + HEAD_DIM + 1) * weight;
            low += __ldcg(found + s * step + column) * weight;
            high += __ldcg(found + s * step + column + 1) * weight;
        }
        const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
        *(unsigned *)(target + at) = pack(low * inverse, high * inverse);
    }
}
