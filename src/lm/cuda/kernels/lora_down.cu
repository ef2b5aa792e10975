// The way down into a low-rank update: low = keep(x) · Aᵀ · scale, on tensor cores, reading x once.
// TILES: tiles of 8 low columns that a block makes.
//
// A lane reads 8 neighbouring elements of a row at once. The product sums over columns in any order, so those 8 may stand
// for any 8 columns of the tensor core's operand as long as x and A agree: lane c of a quad holds columns 8c to 8c+7.

// x [rows, in], a [.., in], both with their row strides; the block's columns start at blockIdx.y · 8 · TILES. `out` and
// `saved` take the same columns, `saved` unless it is null. Eight warps: `split` along the columns of x, 8 / split along
// its rows, 32 to a warp.
extern "C" __global__ void __launch_bounds__(256)
    lora_down(const bf16 *x, int x_stride, const bf16 *a, bf16 *out, int out_stride, bf16 *saved, int saved_stride, int in,
              int rows, int split, float scale, u64 seed, unsigned threshold) {
    __shared__ float partial[7 * 32 * TILES * 8];
    int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int along = threadIdx.x / 32 / (8 / split), across = threadIdx.x / 32 % (8 / split);
    int first_row = (blockIdx.x * (8 / split) + across) * 32, first_column = blockIdx.y * 8 * TILES;
    float sum[2][TILES][4] = {};
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll 2
    for (int k = along * 32; k < in; k += split * 32) {
        int column = k + 8 * quad;
        bool inside = column < in;
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = first_row + group + 8 * i;
            v[i] = inside && row < rows ? *(const uint4 *)(x + (u64)row * x_stride + column) : zero;
        }
        if (threshold) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = v[i] & keep_mask(seed, (u64)(first_row + group + 8 * i) * in + column, threshold);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            uint4 b = inside ? *(const uint4 *)(a + (u64)(first_column + tile * 8 + group) * in + column) : zero;
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma(sum[m][tile], v[2 * m].x, v[2 * m + 1].x, v[2 * m].y, v[2 * m + 1].y, b.x, b.y);
                mma(sum[m][tile], v[2 * m].z, v[2 * m + 1].z, v[2 * m].w, v[2 * m + 1].w, b.z, b.w);
            }
        }
    }
    // The warps along the columns add up in a fixed order.
    if (split > 1) {
        int slot = ((along - 1) * (8 / split) + across) * 32 * TILES * 8;
        if (along > 0) {
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                    for (int i = 0; i < 4; i++) partial[slot + ((m * TILES + tile) * 4 + i) * 32 + lane] = sum[m][tile][i];
        }
        __syncthreads();
        if (along > 0) return;
        for (int other = 0; other < split - 1; other++) {
            int from = (other * (8 / split) + across) * 32 * TILES * 8;
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[m][tile][i] += partial[from + ((m * TILES + tile) * 4 + i) * 32 + lane];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = first_row + group + 8 * i;
        if (row >= rows) continue;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            unsigned pair = pack(sum[i / 2][tile][i % 2 * 2] * scale, sum[i / 2][tile][i % 2 * 2 + 1] * scale);
            int column = first_column + tile * 8 + quad * 2;
            *(unsigned *)(out + (u64)row * out_stride + column) = pair;
            if (saved) *(unsigned *)(saved + (u64)row * saved_stride + column) = pair;
        }
    }
}
