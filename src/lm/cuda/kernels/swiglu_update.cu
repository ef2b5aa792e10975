// silu(gate) · up, forward and backward, over gate_up [rows, 2 · width] that came from the frozen weight alone: the
// low-rank update of gate and up, low · Bᵀ, is added in passing both times and never written. Each row's largest magnitude
// goes to `largest` [rows], zeros before, for whoever rounds the rows.
// STEPS: 16ths of the low columns of the layer above; GATE_STEPS: of those that gate takes, and up; 0 without an update.

#define ROWS 32
#define RESIDENT (STEPS + GATE_STEPS > 2 ? 2 : 3)  // blocks of a multiprocessor, as many as registers allow
#define REPEAT 4  // groups of rows that a block takes one after the other

// The updates of gate and of up for a group of rows. `low` [rows, low_stride] and `b` [2 · width, low_stride]: columns from 0
// on are gate's, from `up_low` on up's.
__device__ __forceinline__ void make_updates(Tile<ROWS> &gates, Tile<ROWS> &ups, int first_row, const bf16 *low, const bf16 *b,
                                             int low_stride, int up_low, int width, int rows) {
    make_tile<ROWS, GATE_STEPS>(gates, first_row, low, low_stride, b, low_stride, width, rows, 1.0f);
    make_tile<ROWS, GATE_STEPS>(ups, first_row, low + up_low, low_stride, b + (u64)width * low_stride + up_low, low_stride,
                                width, rows, 1.0f);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT)
    swiglu_update(const bf16 *gate_up, const bf16 *low, const bf16 *b, int low_stride, int up_low, bf16 *gated, float *largest,
                  int width, int rows) {
    __shared__ Tile<ROWS> gates, ups;
    int vector = threadIdx.x % 32, own = FIRST_COLUMN + vector * 8;
    for (int repeat = 0; repeat < REPEAT; repeat++) {
        int first_row = (blockIdx.y * REPEAT + repeat) * ROWS;
        if (first_row >= rows) return;
        __syncthreads();
        make_updates(gates, ups, first_row, low, b, low_stride, up_low, width, rows);
        __syncthreads();
#pragma unroll
        for (int row = threadIdx.x / 32; row < ROWS; row += 8) {
            int r = first_row + row;
            if (r >= rows) break;
            float most = 0.0f;
            if (own < width) {
                const bf16 *from = gate_up + (u64)r * 2 * width + own;
                float g[8], u[8];
                unpack(*(const uint4 *)from, g), unpack(*(const uint4 *)(from + width), u);
                add_tile<GATE_STEPS>(g, gates, row, vector), add_tile<GATE_STEPS>(u, ups, row, vector);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    g[i] = rounded(g[i] / (1.0f + __expf(-g[i]))) * u[i];
                    most = fmaxf(most, fabsf(g[i]));
                }
                *(uint4 *)(gated + (u64)r * width + own) = pack(g);
            }
            most = warp_max(most);
            if (vector == 0) atomic_max(largest + r, rounded(most));
        }
    }
}

// The arguments are those of the forward pass and those of swiglu_backward in lora_up.cu; d_gate_up takes the place of
// gate_up, and `largest` is of its rows.
extern "C" __global__ void __launch_bounds__(256, RESIDENT)
    swiglu_update_backward(const bf16 *base, const bf16 *dlow, const bf16 *at, bf16 *gate_up, const bf16 *low, const bf16 *b,
                           int low_stride, int up_low, bf16 *gated, float *largest, int width, int rows, float scale,
                           u64 seed, unsigned threshold) {
    __shared__ Tile<ROWS> gates, ups, above;
    int vector = threadIdx.x % 32, own = FIRST_COLUMN + vector * 8;
    for (int repeat = 0; repeat < REPEAT; repeat++) {
        int first_row = (blockIdx.y * REPEAT + repeat) * ROWS;
        if (first_row >= rows) return;
        __syncthreads();
        make_updates(gates, ups, first_row, low, b, low_stride, up_low, width, rows);
        make_tile<ROWS, STEPS>(above, first_row, dlow, 16 * STEPS, at, 16 * STEPS, width, rows, scale);
        __syncthreads();
#pragma unroll 2
        for (int row = threadIdx.x / 32; row < ROWS; row += 8) {
            int r = first_row + row;
            if (r >= rows) break;
            float most = 0.0f;
            if (own < width) {
                u64 place = (u64)r * 2 * width + own;
                float d[8], g[8], u[8], out[8];
                unpack(*(const uint4 *)(base + (u64)r * width + own), d);
                unpack(*(const uint4 *)(gate_up + place), g), unpack(*(const uint4 *)(gate_up + place + width), u);
                add_tile<GATE_STEPS>(g, gates, row, vector), add_tile<GATE_STEPS>(u, ups, row, vector);
                add_tile<STEPS>(d, above, row, vector, seed, (u64)r * width + own, threshold);
                swiglu_gradient(d, g, u, out);
#pragma unroll
                for (int i = 0; i < 8; i++) most = fmaxf(most, fmaxf(fabsf(g[i]), fabsf(u[i])));
                *(uint4 *)(gate_up + place) = pack(g);
                *(uint4 *)(gate_up + place + width) = pack(u);
                *(uint4 *)(gated + (u64)r * width + own) = pack(out);
            }
            most = warp_max(most);
            if (vector == 0) atomic_max(largest + r, rounded(most));
        }
    }
}
