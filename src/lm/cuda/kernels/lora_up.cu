// The way back up: gradients of a linear layer's input, base + keep · scale · (dlow · A), alone and inside the backward
// pass of the gated activation. STEPS: 16ths of the low columns.
//
// The tensor core's columns are dealt so that the four tiles of a warp give each lane 8 neighbouring columns of a row:
// column 2c + i of tile j stands for column 8c + 2j + i.

#define ROWS (STEPS <= 4 ? 2 : 1)

struct Product {
    unsigned low[ROWS][STEPS + 1][4];

    // The lane's part of 16 · ROWS rows of dlow.
    __device__ __forceinline__ void load(const bf16 *dlow, int stride, int first_row, int rows) {
        int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int step = 0; step < STEPS; step++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = first_row + m * 16 + group + i % 2 * 8, column = step * 16 + quad * 2 + i / 2 * 8;
                    low[m][step][i] = row < rows ? *(const unsigned *)(dlow + (u64)row * stride + column) : 0;
                }
    }

    // dlow · A for 32 columns; `at` is A transposed, [in, 16 · STEPS].
    __device__ __forceinline__ void columns(const bf16 *at, int first_column, int in, float (&sum)[ROWS][4][4]) {
        int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            int column = first_column + 8 * (group / 2) + 2 * tile + group % 2;
            const bf16 *from = at + (u64)min(column, in - 1) * (16 * STEPS) + quad * 2;
#pragma unroll
            for (int m = 0; m < ROWS; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[m][tile][i] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                unsigned b0 = *(const unsigned *)(from + step * 16), b1 = *(const unsigned *)(from + step * 16 + 8);
#pragma unroll
                for (int m = 0; m < ROWS; m++)
                    mma(sum[m][tile], low[m][step][0], low[m][step][1], low[m][step][2], low[m][step][3], b0, b1);
            }
        }
    }
};

// base + the update's part, for the lane's 8 columns of row m · 16 + half · 8 + group.
__device__ __forceinline__ void add_update(float (&base)[8], const float (&sum)[4][4], int half, float scale, u64 seed,
                                           u64 element, unsigned threshold) {
    uint4 update = make_uint4(pack(sum[0][2 * half] * scale, sum[0][2 * half + 1] * scale),
                              pack(sum[1][2 * half] * scale, sum[1][2 * half + 1] * scale),
                              pack(sum[2][2 * half] * scale, sum[2][2 * half + 1] * scale),
                              pack(sum[3][2 * half] * scale, sum[3][2 * half + 1] * scale));
    if (threshold) update = update & keep_mask(seed, element, threshold);
    float add[8];
    unpack(update, add);
#pragma unroll
    for (int i = 0; i < 8; i++) base[i] += add[i];
}

#define FIRST_ROW ((blockIdx.x * 8 + threadIdx.x / 32) * 16 * ROWS)
#define COLUMNS 256

// out = base + keep · scale · (dlow · A). base and out [rows, in] with their strides, which may be one memory.
extern "C" __global__ void __launch_bounds__(256)
    lora_up(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at, bf16 *out, int out_stride,
            int in, int rows, float scale, u64 seed, unsigned threshold) {
    int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    Product product;
    product.load(dlow, dlow_stride, FIRST_ROW, rows);
    int end = min(in, (int)(blockIdx.y + 1) * COLUMNS);
    for (int column = blockIdx.y * COLUMNS; column < end; column += 32) {
        float sum[ROWS][4][4];
        product.columns(at, column, in, sum);
        int own = column + 8 * quad;
        if (own >= in) continue;
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = FIRST_ROW + m * 16 + half * 8 + group;
                if (row >= rows) continue;
                float x[8];
                unpack(*(const uint4 *)(base + (u64)row * base_stride + own), x);
                add_update(x, sum[m], half, scale, seed, (u64)row * in + own, threshold);
                *(uint4 *)(out + (u64)row * out_stride + own) = pack(x);
            }
    }
}

// Backward of silu(gate) · up with the update of the layer above it. base [rows, width] is the gradient through the
// frozen weight; gate_up and d_gate_up [rows, 2 · width]; gated [rows, width] is made again.
extern "C" __global__ void __launch_bounds__(256, 2)
    swiglu_backward(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at,
                    const bf16 *gate_up, bf16 *d_gate_up, bf16 *gated, int gated_stride, int width, int rows, float scale,
                    u64 seed, unsigned threshold) {
    int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    Product product;
    product.load(dlow, dlow_stride, FIRST_ROW, rows);
    int end = min(width, (int)(blockIdx.y + 1) * COLUMNS);
    for (int column = blockIdx.y * COLUMNS; column < end; column += 32) {
        float sum[ROWS][4][4];
        product.columns(at, column, width, sum);
        int own = column + 8 * quad;
        if (own >= width) continue;
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = FIRST_ROW + m * 16 + half * 8 + group;
                if (row >= rows) continue;
                u64 place = (u64)row * 2 * width + own;
                float d[8], g[8], u[8], out[8];
                unpack(*(const uint4 *)(base + (u64)row * base_stride + own), d);
                unpack(*(const uint4 *)(gate_up + place), g), unpack(*(const uint4 *)(gate_up + place + width), u);
                add_update(d, sum[m], half, scale, seed, (u64)row * width + own, threshold);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    float sigmoid = 1.0f / (1.0f + __expf(-g[i])), silu = rounded(g[i] * sigmoid);
                    out[i] = silu * u[i];
                    g[i] = d[i] * u[i] * sigmoid * (1.0f + g[i] * (1.0f - sigmoid));
                    u[i] = d[i] * silu;
                }
                *(uint4 *)(d_gate_up + place) = pack(g);
                *(uint4 *)(d_gate_up + place + width) = pack(u);
                *(uint4 *)(gated + (u64)row * gated_stride + own) = pack(out);
            }
    }
}
