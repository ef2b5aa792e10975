// Rows rounded to e4m3 (arXiv:2209.05433), each with its own scale, fused with what makes them. The values before the
// rounding are those of norm.cu and swiglu.cu. A block per row; widths are multiples of 16; each thread keeps up to 32
// values of its row.

#define VECTORS 4

__device__ __forceinline__ float block_max(float x, float *scratch) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f;
    return warp_max(x);
}

__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = lanes_sum<32>(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f;
    return lanes_sum<32>(x);
}

__device__ __forceinline__ int column_of(int vector) { return (vector * blockDim.x + threadIdx.x) * 8; }

// Rounds a row that the block holds, and stores its scale: x ≈ e4m3 · scale.
__device__ __forceinline__ void store_row(const float (&x)[VECTORS][8], unsigned char *out, float *scales, int width,
                                          float *scratch) {
    float most = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (column_of(v) >= width) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(x[v][i]));
    }
    const float scale = fmaxf(block_max(most, scratch), 1e-12f) / LARGEST_E4M3;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (column_of(v) >= width) continue;
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = x[v][i] / scale;
        *(uint2 *)(out + (u64)blockIdx.x * width + column_of(v)) = pack_e4m3(y);
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

// x: [rows, width] of bf16, rows `stride` apart.
extern "C" __global__ void rows_e4m3(const bf16 *x, unsigned char *out, float *scales, int width, int stride) {
    __shared__ float scratch[32];
    float kept[VECTORS][8];
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        if (column_of(v) < width) unpack(*(const uint4 *)(x + (u64)blockIdx.x * stride + column_of(v)), kept[v]);
    store_row(kept, out, scales, width, scratch);
}

// x += y where `y` is not null; out = norm(x) · weight.
extern "C" __global__ void add_norm_e4m3(bf16 *x, const bf16 *y, const bf16 *weight, unsigned char *out, float *scales,
                                         int width, float eps) {
    __shared__ float sums[32], scratch[32];
    float kept[VECTORS][8], squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (column_of(v) >= width) continue;
        const u64 place = (u64)blockIdx.x * width + column_of(v);
        unpack(*(const uint4 *)(x + place), kept[v]);
        if (y) {
            float added[8];
            unpack(*(const uint4 *)(y + place), added);
#pragma unroll
            for (int i = 0; i < 8; i++) kept[v][i] = rounded(kept[v][i] + added[i]);
            *(uint4 *)(x + place) = pack(kept[v]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) squares += kept[v][i] * kept[v][i];
    }
    const float inverse = rsqrtf(block_sum(squares, sums) / width + eps);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (column_of(v) >= width) continue;
        float w[8];
        unpack(*(const uint4 *)(weight + column_of(v)), w);
#pragma unroll
        for (int i = 0; i < 8; i++) kept[v][i] = rounded(rounded(kept[v][i] * inverse) * w[i]);
    }
    store_row(kept, out, scales, width, scratch);
}

// silu(gate) · up. gate_up: [rows, 2 · width].
extern "C" __global__ void swiglu_e4m3(const bf16 *gate_up, unsigned char *out, float *scales, int width) {
    __shared__ float scratch[32];
    float kept[VECTORS][8];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        if (column_of(v) >= width) continue;
        const bf16 *gate = gate_up + (u64)blockIdx.x * 2 * width + column_of(v);
        float up[8];
        unpack(*(const uint4 *)gate, kept[v]), unpack(*(const uint4 *)(gate + width), up);
#pragma unroll
        for (int i = 0; i < 8; i++) kept[v][i] = rounded(rounded(kept[v][i] / (1.0f + __expf(-kept[v][i]))) * up[i]);
    }
    store_row(kept, out, scales, width, scratch);
}
