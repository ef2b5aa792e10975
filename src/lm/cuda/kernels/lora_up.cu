// The way back up: gradients of a linear layer's input, base + keep · scale · (dlow · A), alone and inside the backward
// pass of the gated activation. STEPS: 16ths of the low columns, 0 without an update.
//
// A block makes its tile of the product on tensor cores and lays it into shared memory, so that all that follows reads and
// writes whole rows of 512 bytes.

#define ROWS 64
#define COLUMNS 256
#define FIRST_ROW (blockIdx.y * ROWS)
#define FIRST_COLUMN (blockIdx.x * COLUMNS)

typedef bf16 Tile[ROWS][COLUMNS + 8];

// tile = scale · (dlow · A); `at` is A transposed, [in, 16 · STEPS]. Each of the eight warps makes 32 columns.
__device__ __forceinline__ void make_tile(Tile &tile, const bf16 *dlow, int stride, const bf16 *at, int in, int rows,
                                          float scale) {
#if STEPS > 0
    int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4, first = threadIdx.x / 32 * 32;
    unsigned b[4][STEPS][2];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int column = min(FIRST_COLUMN + first + n * 8 + group, in - 1);
        const bf16 *from = at + (u64)column * (16 * STEPS) + quad * 2;
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int i = 0; i < 2; i++) b[n][step][i] = *(const unsigned *)(from + step * 16 + i * 8);
    }
#pragma unroll
    for (int m = 0; m < ROWS / 16; m++) {
        float sum[4][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            unsigned a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = min(FIRST_ROW + m * 16 + group + i % 2 * 8, rows - 1);
                a[i] = *(const unsigned *)(dlow + (u64)row * stride + step * 16 + quad * 2 + i / 2 * 8);
            }
#pragma unroll
            for (int n = 0; n < 4; n++) mma(sum[n], a[0], a[1], a[2], a[3], b[n][step][0], b[n][step][1]);
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(unsigned *)&tile[m * 16 + half * 8 + group][first + n * 8 + quad * 2] =
                    pack(sum[n][2 * half] * scale, sum[n][2 * half + 1] * scale);
    }
    __syncthreads();
#endif
}

// x += keep · tile, for 8 columns of a row.
__device__ __forceinline__ void add_tile(float (&x)[8], const Tile &tile, int row, int column, u64 seed, u64 element,
                                         unsigned threshold) {
#if STEPS > 0
    uint4 update = *(const uint4 *)&tile[row][column];
    if (threshold) update = update & keep_mask(seed, element, threshold);
    float add[8];
    unpack(update, add);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] += add[i];
#endif
}

// out = base + keep · scale · (dlow · A). base and out [rows, in] with their strides, which may be one memory.
extern "C" __global__ void __launch_bounds__(256)
    lora_up(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at, bf16 *out, int out_stride,
            int in, int rows, float scale, u64 seed, unsigned threshold) {
    __shared__ __align__(16) Tile tile;
    int column = threadIdx.x % 32 * 8, own = FIRST_COLUMN + column;
    // On their way while the tile is made.
    uint4 inputs[ROWS / 8];
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        int r = FIRST_ROW + i * 8 + threadIdx.x / 32;
        if (own < in && r < rows) inputs[i] = *(const uint4 *)(base + (u64)r * base_stride + own);
    }
    make_tile(tile, dlow, dlow_stride, at, in, rows, scale);
    if (own >= in) return;
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        int row = i * 8 + threadIdx.x / 32, r = FIRST_ROW + row;
        if (r >= rows) return;
        float x[8];
        unpack(inputs[i], x);
        add_tile(x, tile, row, column, seed, (u64)r * in + own, threshold);
        *(uint4 *)(out + (u64)r * out_stride + own) = pack(x);
    }
}

// Backward of silu(gate) · up with the update of the layer above it. base [rows, width] is the gradient through the
// frozen weight; gate_up and d_gate_up [rows, 2 · width] may be one memory; gated [rows, width] is made again.
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at,
                    const bf16 *gate_up, bf16 *d_gate_up, bf16 *gated, int gated_stride, int width, int rows, float scale,
                    u64 seed, unsigned threshold) {
    __shared__ __align__(16) Tile tile;
    make_tile(tile, dlow, dlow_stride, at, width, rows, scale);
    int column = threadIdx.x % 32 * 8, own = FIRST_COLUMN + column;
    if (own >= width) return;
#pragma unroll 2
    for (int row = threadIdx.x / 32; row < ROWS; row += 8) {
        int r = FIRST_ROW + row;
        if (r >= rows) return;
        u64 place = (u64)r * 2 * width + own;
        float d[8], g[8], u[8], out[8];
        unpack(*(const uint4 *)(base + (u64)r * base_stride + own), d);
        unpack(*(const uint4 *)(gate_up + place), g), unpack(*(const uint4 *)(gate_up + place + width), u);
        add_tile(d, tile, row, column, seed, (u64)r * width + own, threshold);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float sigmoid = 1.0f / (1.0f + __expf(-g[i])), silu = rounded(g[i] * sigmoid);
            out[i] = silu * u[i];
            g[i] = d[i] * u[i] * sigmoid * (1.0f + g[i] * (1.0f - sigmoid));
            u[i] = d[i] * silu;
        }
        *(uint4 *)(d_gate_up + place) = pack(g);
        *(uint4 *)(d_gate_up + place + width) = pack(u);
        *(uint4 *)(gated + (u64)r * gated_stride + own) = pack(out);
    }
}
