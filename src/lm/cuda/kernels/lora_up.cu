// The way back up: gradients of a linear layer's input, base + keep · scale · (dlow · A), alone and inside the backward
// pass of the gated activation. STEPS: 16ths of the low columns, 0 without an update. `at` is A transposed, [in, 16 · STEPS].

#define ROWS 64
#define FIRST_ROW (blockIdx.y * ROWS)

// out = base + keep · scale · (dlow · A). base and out [rows, in] with their strides, which may be one memory.
extern "C" __global__ void __launch_bounds__(256)
    lora_up(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at, bf16 *out, int out_stride,
            int in, int rows, float scale, u64 seed, unsigned threshold) {
    __shared__ Tile<ROWS> tile;
    int vector = threadIdx.x % 32, own = FIRST_COLUMN + vector * 8;
    // On their way while the tile is made.
    uint4 inputs[ROWS / 8];
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        int r = FIRST_ROW + i * 8 + threadIdx.x / 32;
        if (own < in && r < rows) inputs[i] = *(const uint4 *)(base + (u64)r * base_stride + own);
    }
    make_tile<ROWS, STEPS>(tile, FIRST_ROW, dlow, dlow_stride, at, 16 * STEPS, in, rows, scale);
    __syncthreads();
    if (own >= in) return;
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        int row = i * 8 + threadIdx.x / 32, r = FIRST_ROW + row;
        if (r >= rows) return;
        float x[8];
        unpack(inputs[i], x);
        add_tile<STEPS>(x, tile, row, vector, seed, (u64)r * in + own, threshold);
        *(uint4 *)(out + (u64)r * out_stride + own) = pack(x);
    }
}

// Backward of silu(gate) · up with the update of the layer above it. base [rows, width] is the gradient through the
// frozen weight; gate_up and d_gate_up [rows, 2 · width] may be one memory; gated [rows, width] is made again.
extern "C" __global__ void __launch_bounds__(256)
    swiglu_backward(const bf16 *base, int base_stride, const bf16 *dlow, int dlow_stride, const bf16 *at,
                    const bf16 *gate_up, bf16 *d_gate_up, bf16 *gated, int gated_stride, int width, int rows, float scale,
                    u64 seed, unsigned threshold) {
    __shared__ Tile<ROWS> tile;
    make_tile<ROWS, STEPS>(tile, FIRST_ROW, dlow, dlow_stride, at, 16 * STEPS, width, rows, scale);
    __syncthreads();
    int vector = threadIdx.x % 32, own = FIRST_COLUMN + vector * 8;
    if (own >= width) return;
#pragma unroll 2
    for (int row = threadIdx.x / 32; row < ROWS; row += 8) {
        int r = FIRST_ROW + row;
        if (r >= rows) return;
        u64 place = (u64)r * 2 * width + own;
        float d[8], g[8], u[8], out[8];
        unpack(*(const uint4 *)(base + (u64)r * base_stride + own), d);
        unpack(*(const uint4 *)(gate_up + place), g), unpack(*(const uint4 *)(gate_up + place + width), u);
        add_tile<STEPS>(d, tile, row, vector, seed, (u64)r * width + own, threshold);
        swiglu_gradient(d, g, u, out);
        *(uint4 *)(d_gate_up + place) = pack(g);
        *(uint4 *)(d_gate_up + place + width) = pack(u);
        *(uint4 *)(gated + (u64)r * gated_stride + own) = pack(out);
    }
}
