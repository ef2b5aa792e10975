// Gradients of low-rank factors: leftᵀ · keep(x), summed over all tokens, on tensor cores, reading x once.
// TILES: 16ths of the left columns that a block takes (at most 4).
//
// A block sums one tile of 128 columns over a range of tokens into `partial`; `lora_grad_sum` adds the ranges up in a
// fixed order, so the result has the same bits every time.

#define LEFT (16 * TILES)
#define STEP 32
#define COLUMNS 128

// A run of columns of x with its own left columns.
struct Part {
    // Tiles before those of this part; the first column; columns.
    long long first_tile, column, width;
    // The first left column, and how many.
    long long left, rank;
    // Where the gradients of each `ranks` left columns start in the arena, and the distances between ranks and between
    // columns there.
    long long place[4], ranks, rank_stride, column_stride;
};

struct Parts {
    Part part[4];
    long long count, tiles;
};

__device__ __forceinline__ const Part &part_of(const Parts &parts, int tile) {
    int index = 0;
    for (int i = 1; i < parts.count; i++)
        if (tile >= parts.part[i].first_tile) index = i;
    return parts.part[index];
}

// grid: (tiles, ranges, groups of LEFT left columns); partial [ranges, tiles, groups · LEFT, COLUMNS]. `in`: the width
// that the dropout mask counts with.
extern "C" __global__ void __launch_bounds__(128, 4)
    lora_grad(const bf16 *left, int left_stride, const bf16 *x, int x_stride, float *partial, int rows, int rows_per_range,
              int in, u64 seed, unsigned threshold, const __grid_constant__ Parts parts) {
    __shared__ __align__(16) bf16 xs[2][STEP][COLUMNS + 8];
    __shared__ __align__(16) bf16 ls[2][STEP][LEFT + 8];
    const Part &part = part_of(parts, blockIdx.x);
    int offset = (int)(blockIdx.x - part.first_tile) * COLUMNS;
    int first_row = blockIdx.y * rows_per_range, end = min(rows, first_row + rows_per_range);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first_left = blockIdx.z * LEFT;
    // Each thread carries column (threadIdx.x % 16) · 8 of four rows of x, and one column of several rows of left.
    int column = threadIdx.x % 16 * 8;
    bool inside = offset + column < part.width;
    u64 first_x = part.column + offset + column;
    uint4 x_next[4];
    unsigned left_next[STEP * LEFT / 256];

    auto fetch = [&](int row) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = row + i * 8 + threadIdx.x / 16;
            bool real = inside && r < end;
            x_next[i] = real ? *(const uint4 *)(x + (u64)r * x_stride + first_x) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < STEP * LEFT / 256; i++) {
            int index = i * 128 + threadIdx.x, r = row + index / (LEFT / 2), c = first_left + index % (LEFT / 2) * 2;
            // Ranks are even, so a pair lies inside or outside as a whole.
            left_next[i] = r < end && c < part.rank ? *(const unsigned *)(left + (u64)r * left_stride + part.left + c) : 0;
        }
    };
    // The mask comes on the way into shared memory: the loads are not waited for before the products of the last step.
    auto store = [&](int row, int buffer) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = i * 8 + threadIdx.x / 16;
            uint4 v = x_next[i];
            if (threshold) v = v & keep_mask(seed, (u64)(row + r) * in + first_x, threshold);
            *(uint4 *)&xs[buffer][r][column] = v;
        }
#pragma unroll
        for (int i = 0; i < STEP * LEFT / 256; i++) {
            int index = i * 128 + threadIdx.x;
            *(unsigned *)&ls[buffer][index / (LEFT / 2)][index % (LEFT / 2) * 2] = left_next[i];
        }
    };

    float sum[TILES][4][4] = {};
    fetch(first_row);
    int buffer = 0;
    for (int row = first_row; row < end; row += STEP, buffer ^= 1) {
        store(row, buffer);
        __syncthreads();
        if (row + STEP < end) fetch(row + STEP);
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            unsigned b[2][4];
#pragma unroll
            for (int pair = 0; pair < 2; pair++)
                load_transposed(b[pair], &xs[buffer][k + lane / 8 % 2 * 8 + lane % 8][warp * 32 + pair * 16 + lane / 16 * 8]);
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                unsigned a[4];
                load_transposed(a, &ls[buffer][k + lane / 16 * 8 + lane % 8][m * 16 + lane / 8 % 2 * 8]);
#pragma unroll
                for (int n = 0; n < 4; n++)
                    mma(sum[m][n], a[0], a[1], a[2], a[3], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
    float *to = partial + (((u64)blockIdx.y * parts.tiles + blockIdx.x) * gridDim.z + blockIdx.z) * LEFT * COLUMNS;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = m * 16 + half * 8 + lane / 4, c = warp * 32 + n * 8 + lane % 4 * 2;
                *(float2 *)(to + r * COLUMNS + c) = make_float2(sum[m][n][2 * half], sum[m][n][2 * half + 1]);
            }
}

// gradients += scale · the sum over ranges. grid: (tiles, left columns), a thread a column.
extern "C" __global__ void __launch_bounds__(128)
    lora_grad_sum(const float *partial, float *gradients, int ranges, int left_columns, float scale,
                  const __grid_constant__ Parts parts) {
    const Part &part = part_of(parts, blockIdx.x);
    long long column = (blockIdx.x - part.first_tile) * COLUMNS + threadIdx.x;
    if (blockIdx.y >= part.rank || column >= part.width) return;
    const float *from = partial + ((u64)blockIdx.x * left_columns + blockIdx.y) * COLUMNS + threadIdx.x;
    u64 stride = (u64)parts.tiles * left_columns * COLUMNS;
    float sum = 0.0f;
    for (int range = 0; range < ranges; range++) sum += from[range * stride];
    u64 place = part.place[blockIdx.y / part.ranks] + blockIdx.y % part.ranks * part.rank_stride;
    gradients[place + column * part.column_stride] += scale * sum;
}
