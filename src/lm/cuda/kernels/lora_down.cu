// The way down into a low-rank update: low = keep(x) · Aᵀ · scale, on tensor cores, reading x once.
// TILES: tiles of 8 low columns that a block makes. ROUNDS: whether x is rounded to e4m3 in passing.
//
// A lane reads 8 neighbouring elements of a row at once. The product sums over columns in any order, so those 8 may stand
// for any 8 columns of the tensor core's operand as long as x and A agree: lane c of a quad holds columns 8c to 8c+7.

// x [rows, in] and out with their row strides, a [.., in]; the block's low columns start at blockIdx.y · 8 · TILES. `out`
// and `saved` take the same columns, `saved` unless it is null. A block takes 32 rows; its eight warps share the columns of
// x among them, 32 at a time. Rounding takes the largest magnitude of each row and leaves x, without dropout, as
// codes [rows, in] · scales [rows].
extern "C" __global__ void __launch_bounds__(256, 2)
    lora_down(const bf16 *x, int x_stride, const bf16 *a, bf16 *out, int out_stride, bf16 *saved, int saved_stride, int in,
              int rows, float scale, u64 seed, unsigned threshold
#if ROUNDS
              , const float *largest, unsigned char *codes, float *scales
#endif
    ) {
    __shared__ float partial[8][TILES * 8][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int first_row = blockIdx.x * 32, first_column = blockIdx.y * 8 * TILES;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    float sum[2][TILES][4] = {};
    uint4 next[4];

#if ROUNDS
    bool rounds = blockIdx.y == 0;
    float inverse[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = first_row + group + 8 * i;
        float most = row < rows ? fmaxf(largest[row], 1e-12f) : 1.0f;
        inverse[i] = LARGEST_E4M3 / most;
        if (rounds && row < rows && warp == 0 && quad == 0) scales[row] = most / LARGEST_E4M3;
    }
#endif
    auto fetch = [&](int column) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = first_row + group + 8 * i;
            next[i] = column < in && row < rows ? *(const uint4 *)(x + (u64)row * x_stride + column) : zero;
        }
    };
    fetch(warp * 32 + 8 * quad);
    for (int column = warp * 32 + 8 * quad; column - 8 * quad < in; column += 256) {
        uint4 v[4] = {next[0], next[1], next[2], next[3]}, b[TILES];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const bf16 *from = a + (u64)(first_column + tile * 8 + group) * in + column;
            b[tile] = column < in ? *(const uint4 *)from : zero;
        }
        fetch(column + 256);
#if ROUNDS
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = first_row + group + 8 * i;
            if (!rounds || row >= rows || column >= in) continue;
            float y[8];
            unpack(v[i], y);
#pragma unroll
            for (int j = 0; j < 8; j++) y[j] *= inverse[i];
            *(uint2 *)(codes + (u64)row * in + column) = pack_e4m3(y);
        }
#endif
        if (threshold) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = v[i] & keep_mask(seed, (u64)(first_row + group + 8 * i) * in + column, threshold);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
                mma(sum[m][tile], v[2 * m].x, v[2 * m + 1].x, v[2 * m].y, v[2 * m + 1].y, b[tile].x, b[tile].y);
                mma(sum[m][tile], v[2 * m].z, v[2 * m + 1].z, v[2 * m].w, v[2 * m + 1].w, b[tile].z, b[tile].w);
            }
        }
    }
    // The warps' sums are added up in a fixed order, each warp a part of them.
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) partial[warp][(m * TILES + tile) * 4 + i][lane] = sum[m][tile][i];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < TILES / 2; j++) {
        int pair = j * 8 + warp, half = pair % 2, tile = pair / 2 % TILES, m = pair / 2 / TILES;
        float low = 0.0f, high = 0.0f;
#pragma unroll
        for (int other = 0; other < 8; other++) {
            low += partial[other][2 * pair][lane];
            high += partial[other][2 * pair + 1][lane];
        }
        int row = first_row + m * 16 + half * 8 + group, column = first_column + tile * 8 + quad * 2;
        if (row >= rows) continue;
        unsigned both = pack(low * scale, high * scale);
        *(unsigned *)(out + (u64)row * out_stride + column) = both;
        if (saved) *(unsigned *)(saved + (u64)row * saved_stride + column) = both;
    }
}
