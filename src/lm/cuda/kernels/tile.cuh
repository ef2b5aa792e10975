// A tile of a low-rank product, [rows, low] · [low, columns], made on tensor cores and laid into shared memory, so that all
// that follows reads and writes whole rows of 512 bytes. For blocks of 256 threads.

#define COLUMNS 256
#define FIRST_COLUMN (blockIdx.x * COLUMNS)

// Vectors of 8 columns. Those of a row are permuted by its place among 8 rows, so that neither writing nor reading meets a
// bank twice.
template <int TILE_ROWS>
struct Tile {
    uint4 vectors[TILE_ROWS][COLUMNS / 8];

    __device__ __forceinline__ uint4 &at(int row, int vector) { return vectors[row][vector ^ row % 8]; }
};

// tile = scale · low · bᵀ for `TILE_ROWS` rows from `first_row`; `b` is [in, 16 · LOW_STEPS] in rows `b_stride` apart. Each of the
// eight warps makes 32 columns.
template <int TILE_ROWS, int LOW_STEPS>
__device__ __forceinline__ void make_tile(Tile<TILE_ROWS> &tile, int first_row, const bf16 *low, int stride, const bf16 *b,
                                          int b_stride, int in, int rows, float scale) {
    if constexpr (LOW_STEPS > 0) {
        int group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4, first = threadIdx.x / 32 * 32;
        unsigned right[4][LOW_STEPS][2];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int column = min(FIRST_COLUMN + first + n * 8 + group, in - 1);
            const bf16 *from = b + (u64)column * b_stride + quad * 2;
#pragma unroll
            for (int step = 0; step < LOW_STEPS; step++)
#pragma unroll
                for (int i = 0; i < 2; i++) right[n][step][i] = *(const unsigned *)(from + step * 16 + i * 8);
        }
#pragma unroll
        for (int m = 0; m < TILE_ROWS / 16; m++) {
            float sum[4][4] = {};
#pragma unroll
            for (int step = 0; step < LOW_STEPS; step++) {
                unsigned left[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = min(first_row + m * 16 + group + i % 2 * 8, rows - 1);
                    left[i] = *(const unsigned *)(low + (u64)row * stride + step * 16 + quad * 2 + i / 2 * 8);
                }
#pragma unroll
                for (int n = 0; n < 4; n++)
                    mma(sum[n], left[0], left[1], left[2], left[3], right[n][step][0], right[n][step][1]);
            }
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    ((unsigned *)&tile.at(m * 16 + half * 8 + group, first / 8 + n))[quad] =
                        pack(sum[n][2 * half] * scale, sum[n][2 * half + 1] * scale);
        }
    }
}

// x += keep · tile, for the 8 columns of a row that are its vector `vector`.
template <int LOW_STEPS, int TILE_ROWS>
__device__ __forceinline__ void add_tile(float (&x)[8], Tile<TILE_ROWS> &tile, int row, int vector, u64 seed = 0, u64 element = 0,
                                         unsigned threshold = 0) {
    if constexpr (LOW_STEPS > 0) {
        uint4 update = tile.at(row, vector);
        if (threshold) update = update & keep_mask(seed, element, threshold);
        float add[8];
        unpack(update, add);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] += add[i];
    }
}

// Of gated = silu(gate) · up: `d`, the gradient of gated, gives those of gate and up, in their places.
__device__ __forceinline__ void swiglu_gradient(const float (&d)[8], float (&gate)[8], float (&up)[8], float (&gated)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        // Exact to two places of f32; a division by itself takes a branch.
        float sigmoid = __fdividef(1.0f, 1.0f + __expf(-gate[i])), silu = rounded(gate[i] * sigmoid);
        gated[i] = silu * up[i];
        gate[i] = d[i] * up[i] * sigmoid * (1.0f + gate[i] * (1.0f - sigmoid));
        up[i] = d[i] * silu;
    }
}
