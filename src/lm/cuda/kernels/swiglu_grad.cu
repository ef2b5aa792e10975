// The backward pass of silu(gate) · up with the update of the layer above it, as `swiglu_backward` in lora_up.cu, and in the
// same pass the gradients of the factors beside it: A of the layer above, whose input the activation is, and B of gate and
// up. What they are made from is at hand here, so it is neither written for them nor read again.
//
// A block takes 128 columns of a range of tokens, 16 tokens at a time, each of its four warps 32 of the columns. The tokens
// after next are on their way into shared memory meanwhile; what is made of them takes their place there, for the tensor
// cores to read transposed. Updates of at most 16 columns each: `RANK`, 8 or 16.

#define COLUMNS 128  // of a block, as in lora_grad.cu, which adds the partial sums up
#define STEP 16
#define LEFT 16
#define LEFT_ROW 56  // elements, so that eight rows meet no bank of shared memory twice
#define STAGES 3

struct Stage {
    // Rows of all columns: the gradient of gated, gate, up; then gated, and the gradients of gate and up.
    uint4 rows[3][STEP][COLUMNS / 8];
    // Rows of dlow, and of gate's and up's low columns, 16 each.
    bf16 left[STEP][LEFT_ROW];
};

// Vectors of a row are permuted by its place: neither eight rows of one vector nor two rows of four meet a bank twice.
__device__ __forceinline__ uint4 *vector_of(Stage &stage, int matrix, int row, int vector) {
    return &stage.rows[matrix][row][vector ^ (row % 2 * 4 + row / 2 % 4)];
}

// 16 bytes into shared memory, zeros unless `real`.
__device__ __forceinline__ void copy(void *to, const void *from, bool real) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0) : "memory");
}

// grid: (tiles of COLUMNS, ranges of tokens). base [rows, width] and dlow [rows, 16] with their strides; at [width, 16];
// gate_up [rows, 2 · width], whose gradient takes its place; low [rows, low_stride], gate's RANK columns, then up's.
// partial_a [ranges, tiles, LEFT, COLUMNS], partial_b [ranges, 2 · tiles, LEFT, COLUMNS], gate's tiles before up's.
extern "C" __global__ void __launch_bounds__(128, 4)
    swiglu_grad(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at, bf16 *gate_up,
                const bf16 *low, int low_stride, float *partial_a, float *partial_b, int width, int rows, int rows_per_range,
                float scale, u64 seed, unsigned threshold) {
    __shared__ __align__(16) Stage stages[STAGES];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int first = blockIdx.x * COLUMNS, own = first + warp * 32 + quad * 8;
    int start = blockIdx.y * rows_per_range, end = min(rows, start + rows_per_range);
    // What a thread carries between global and shared memory: a vector of two rows, and one of `left`.
    int row_in = threadIdx.x / 16, vector_in = threadIdx.x % 16, column_in = first + vector_in * 8;
    int left_row = threadIdx.x / 6, left_vector = threadIdx.x % 6;
    bool inside = column_in < width;
    column_in = min(column_in, width - 8);

    // Addresses stay inside where nothing is read.
    auto fetch = [&](Stage &stage, int from) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = half * 8 + row_in, r = min(from + row, rows - 1);
            bool real = inside && from + row < end;
            const bf16 *gate = gate_up + (long long)r * (2 * width) + column_in;
            copy(vector_of(stage, 0, row, vector_in), base + (long long)r * base_stride + column_in, real);
            copy(vector_of(stage, 1, row, vector_in), gate, real);
            copy(vector_of(stage, 2, row, vector_in), gate + width, real);
        }
        if (left_row < STEP) {
            int r = min(from + left_row, rows - 1), column = left_vector % 2 * 8 + (left_vector >= 4 ? RANK : 0);
            bool real = from + left_row < end && (left_vector < 2 || column < low_stride);
            const bf16 *origin = left_vector < 2 ? dlow + (long long)r * dlow_stride : low + (long long)r * low_stride;
            copy(&stage.left[left_row][left_vector * 8], origin + (real ? column : 0), real);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    // A of the layer above, as the tensor core's right operand for 4 tiles of 8 columns. The columns are permuted so that
    // a lane gets the 8 neighbouring ones that it computes with.
    unsigned right[4][2];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int column = min(first + warp * 32 + group / 2 * 8 + n * 2 + group % 2, width - 1);
#pragma unroll
        for (int i = 0; i < 2; i++) right[n][i] = *(const unsigned *)(at + (u64)column * 16 + quad * 2 + i * 8);
    }
    float sum[3][4][4] = {};
    fetch(stages[0], start), fetch(stages[1], start + STEP);
    int current = 0;
    for (int from = start; from < end; from += STEP, current = current == STAGES - 1 ? 0 : current + 1) {
        Stage &stage = stages[current];
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        // No warp needs the tokens before these any more.
        fetch(stages[current == 0 ? STAGES - 1 : current - 1], from + 2 * STEP);
        float update[4][4] = {};
        unsigned left[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = *(const unsigned *)&stage.left[group + i % 2 * 8][quad * 2 + i / 2 * 8];
#pragma unroll
        for (int n = 0; n < 4; n++) mma(update[n], left[0], left[1], left[2], left[3], right[n][0], right[n][1]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = half * 8 + group;
            uint4 *at_d = vector_of(stage, 0, row, warp * 4 + quad), *at_g = vector_of(stage, 1, row, warp * 4 + quad),
                  *at_u = vector_of(stage, 2, row, warp * 4 + quad);
            float d[8], g[8], u[8], out[8], add[8];
            unpack(*at_d, d), unpack(*at_g, g), unpack(*at_u, u);
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) add[n * 2 + i] = update[n][half * 2 + i] * scale;
            uint4 packed = pack(add), keep;
            if (threshold) {
                keep = keep_mask(seed, (u64)(from + row) * width + own, threshold);
                packed = packed & keep;
            }
            unpack(packed, add);
#pragma unroll
            for (int i = 0; i < 8; i++) d[i] += add[i];
            swiglu_gradient(d, g, u, out);
            uint4 gated = pack(out);
            if (threshold) gated = gated & keep;
            *at_d = gated, *at_g = pack(g), *at_u = pack(u);
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = half * 8 + row_in;
            bf16 *to = gate_up + (long long)(from + row) * (2 * width) + column_in;
            if (!inside || from + row >= end) continue;
            *(uint4 *)to = *vector_of(stage, 1, row, vector_in);
            *(uint4 *)(to + width) = *vector_of(stage, 2, row, vector_in);
        }
#pragma unroll
        for (int m = 0; m < 3; m++) {
            unsigned a[4];
            load_transposed(a, &stage.left[lane / 16 * 8 + lane % 8][m * 16 + lane / 8 % 2 * 8]);
#pragma unroll
            for (int pair = 0; pair < 2; pair++) {
                unsigned b[4];
                load_transposed(b, (const bf16 *)vector_of(stage, m, lane % 16, warp * 4 + pair * 2 + lane / 16));
                mma(sum[m][pair * 2], a[0], a[1], a[2], a[3], b[0], b[1]);
                mma(sum[m][pair * 2 + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
    }
    int tiles = gridDim.x;
#pragma unroll
    for (int m = 0; m < 3; m++) {
        float *to = m == 0 ? partial_a + ((u64)blockIdx.y * tiles + blockIdx.x) * LEFT * COLUMNS
                           : partial_b + ((u64)blockIdx.y * 2 * tiles + (m - 1) * tiles + blockIdx.x) * LEFT * COLUMNS;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(float2 *)(to + (half * 8 + group) * COLUMNS + warp * 32 + n * 8 + quad * 2) =
                    make_float2(sum[m][n][2 * half], sum[m][n][2 * half + 1]);
    }
}
